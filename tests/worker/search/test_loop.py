"""Whole searches: workers that share a folder, that die at every stage, and failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merge_worker.search.definition import read_search
from merge_worker.search.results import Result, best_of, read_results
from support.language_models import make, write_tokenizer
from support.paths import SOURCES
from support.search_files import RECIPE, SPACE, Done, Searches, make_searches

FIXED = ["parent-m1", "parent-m2", "average", "recipe"]


@pytest.fixture
def searches(tmp_path: Path) -> Searches:
    return make_searches(tmp_path)


def results(searches: Searches) -> dict[str, Result]:
    return {result.name: result for result in read_results(searches.folder / "runs")}


def states(searches: Searches) -> list[str]:
    """Return the states of the trials in the study, as optuna has them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = str(searches.folder / "runs" / "study" / "journal.log")
    backend = optuna.storages.journal.JournalFileBackend(path)
    storage = optuna.storages.JournalStorage(backend)
    return [
        trial.state.name for trial in optuna.load_study(storage=storage, study_name="search").trials
    ]


def complete(searches: Searches, trials: int) -> None:
    """Every trial has a number of its own, a score and one merge; the study knows them all."""
    names = [f"t{number:04d}" for number in range(trials)]
    found = results(searches)
    assert list(found) == [*FIXED, *names]
    assert all(result.is_done for result in found.values())
    assert states(searches) == ["COMPLETE"] * trials


def test_a_search(searches: Searches) -> None:
    searches.write("trials: 4\nstart: [{models.1.parameters.weight: 0.3}]")
    done = searches.run()
    assert done.code == 0, done.err
    complete(searches, 4)
    assert searches.merged() == ["average", "recipe", *(f"t000{n}" for n in range(4))]
    assert searches.evaluated() == [*FIXED, *(f"t000{n}" for n in range(4))]
    best = best_of(results(searches).values(), "maximize")
    assert best is not None and (best.name, best.score) == ("t0000", 0)
    assert "best       t0000: -0  (weight 0.3)" in done.out or "best       t0000: 0" in done.out
    assert "gain       0.49 better than the best parent" in done.out
    # Only the weights of the best stay.
    kept = [
        path.parent.parent.name for path in (searches.folder / "runs").rglob("model.safetensors")
    ]
    assert kept == ["t0000"]
    # The same command again finds all done, and does nothing twice.
    again = searches.run()
    assert again.code == 0 and len(searches.evaluated()) == 8
    # More trials continue it.
    searches.write("trials: 5\nstart: [{models.1.parameters.weight: 0.3}]")
    assert searches.run().code == 0
    complete(searches, 5)


@pytest.mark.slow
def test_the_best_recipe_makes_the_kept_result_again(searches: Searches) -> None:
    searches.write("trials: 2")
    assert searches.run().code == 0
    out = searches.folder / "runs"
    argv = [sys.executable, "-m", "merge_worker", "merge", "runs/best.yml", "again"]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    subprocess.run(argv, cwd=searches.folder, env=env, check=True, capture_output=True)
    (kept,) = out.rglob("model.safetensors")
    assert (searches.folder / "again" / "model.safetensors").read_bytes() == kept.read_bytes()


DIE_IN_A_MERGE = """
def before_merge(candidate):
    if candidate.name == "t0001":
        threading.Timer(0.5, die).start()
"""
DIE_IN_AN_EVALUATION = """
measure = work.Workshop.score
def score(self, candidate, *rest):
    if candidate.name == "t0001":
        threading.Timer(0.2, die).start()
        time.sleep(60)
    return measure(self, candidate, *rest)
work.Workshop.score = score
"""
DIE_BEFORE_TELL = """
tell = study.Study.tell
study.Study.tell = lambda self, number, score: die() if number == 1 else tell(self, number, score)
"""
DIE_AFTER_ASK = """
claim = loop.Loop._claim
loop.Loop._claim = lambda self, each: die() if each.name == "t0001" else claim(self, each)
"""
DIE_AFTER_LOCK = """
claim = work.Workshop.claim
work.Workshop.claim = lambda self, each: die() if each.name == "t0001" else claim(self, each)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "merges"),
    [
        (DIE_IN_A_MERGE, 2),  # begun twice: the second resumes the first
        (DIE_IN_AN_EVALUATION, 1),
        (DIE_BEFORE_TELL, 1),
        (DIE_AFTER_ASK, 1),
        (DIE_AFTER_LOCK, 1),
    ],
    ids=["merge", "evaluation", "before tell", "after ask", "after lock"],
)
def test_a_killed_worker_is_replaced(searches: Searches, patch: str, merges: int) -> None:
    searches.write("trials: 3\nsampler: tpe")
    undisturbed = make_searches(searches.folder / "alone")
    undisturbed.write("trials: 3\nsampler: tpe")
    assert undisturbed.run().code == 0
    assert searches.run(patch=patch).code == -signal.SIGKILL
    done = searches.run()
    assert done.code == 0, done.err
    complete(searches, 3)
    assert searches.merged().count("t0001") == merges
    finished = [searches.folder / "runs" / f"t000{n}" / "merge.out" for n in range(3)]
    assert all(path.exists() for path in finished)
    # The end is that of an undisturbed search.
    assert {n: r.score for n, r in results(searches).items()} == {
        n: r.score for n, r in results(undisturbed).items()
    }


@pytest.mark.slow
def test_another_worker_takes_over_without_a_new_command(searches: Searches) -> None:
    searches.write("trials: 4\nsampler: tpe")
    victim = searches.start(patch=DIE_IN_AN_EVALUATION)
    others = [searches.start() for _ in range(2)]
    ends = [child.communicate(timeout=600) for child in others]
    assert [child.returncode for child in others] == [0, 0], ends
    victim.communicate(timeout=60)
    complete(searches, 4)
    names = [f"t{number:04d}" for number in range(4)]
    assert sorted(searches.merged()) == sorted(["average", "recipe", *names])


@pytest.mark.slow
def test_two_workers_share_a_journal(searches: Searches) -> None:
    searches.write("trials: 10\nsampler: random")
    children = [searches.start() for _ in range(2)]
    ends = [child.communicate(timeout=600) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    complete(searches, 10)
    assert sorted(searches.merged()) == sorted({*searches.merged()})
    # Both draw by the number of the trial: no value twice.
    assert len({r.score for n, r in results(searches).items() if n[0] == "t"}) == 10


@pytest.mark.slow
def test_the_optimum_is_found(searches: Searches) -> None:
    searches.write("trials: 40\nseed: 0")
    assert searches.run().code == 0
    best = best_of(results(searches).values(), "maximize")
    assert best is not None and abs(best.values["weight"] - 0.3) < 0.05


@pytest.mark.slow
def test_a_lock_of_the_journal_that_was_left_behind(searches: Searches) -> None:
    searches.write("trials: 1")
    study = searches.folder / "runs" / "study"
    study.mkdir(parents=True)
    (study / "journal.log").touch()
    (study / "journal.log.lock").symlink_to(study / "journal.log")
    began = time.monotonic()
    done = searches.run()
    assert done.code == 0, done.err
    assert time.monotonic() - began < 60
    complete(searches, 1)


@pytest.mark.slow
def test_a_torn_line_of_the_journal(searches: Searches) -> None:
    searches.write("trials: 1")
    assert searches.run().code == 0
    with (searches.folder / "runs" / "study" / "journal.log").open("a") as journal:
        journal.write('{"op_code": 4, "wor')
    searches.write("trials: 2")
    done = searches.run()
    assert done.code == 0, done.err
    complete(searches, 2)


def test_a_damaged_journal_is_an_error_of_one_line(searches: Searches) -> None:
    searches.write("trials: 1")
    study = searches.folder / "runs" / "study"
    study.mkdir(parents=True)
    (study / "journal.log").write_text("no journal\nat all\n")
    done = searches.run()
    assert done.code == 3
    assert "journal.log: damaged" in done.err and "Traceback" not in done.err


@pytest.mark.slow
def test_a_failing_evaluation_stops_early_and_is_tried_again(searches: Searches) -> None:
    searches.write("trials: 9", evaluate="echo no such task >&2; exit 7")
    done = searches.run()
    assert done.code == 2
    assert "3 candidates in a row failed alike (parent-m1, parent-m2, average)" in done.err
    assert "evaluate ended with exit code 7: no such task" in done.err
    assert "evaluate.err" not in searches.merged() and len(searches.merged()) == 1
    searches.write("trials: 2")
    assert searches.run().code == 0
    complete(searches, 2)


@pytest.mark.slow
def test_trials_that_failed_before_the_stop_are_not_lost(searches: Searches) -> None:
    only_trials = "case $MERGE_SEARCH_CANDIDATE in t*) echo broken >&2; exit 1;; esac; echo 1"
    searches.write("trials: 4", evaluate=only_trials)
    done = searches.run()
    assert done.code == 2 and "(t0000, t0001, t0002)" in done.err
    assert states(searches) == ["RUNNING"] * 3
    searches.write("trials: 4", evaluate="echo 1")
    done = searches.run()
    assert done.code == 0, done.err
    complete(searches, 4)
    assert sorted(searches.merged()) == sorted({*searches.merged()})


@pytest.mark.slow
def test_a_score_that_is_no_number_is_not_the_best(searches: Searches) -> None:
    searches.write(
        "trials: 3", evaluate="case $MERGE_SEARCH_CANDIDATE in t0001) echo nan;; *) echo 1;; esac"
    )
    assert searches.run().code == 0
    assert states(searches) == ["COMPLETE", "FAIL", "COMPLETE"]
    failed = results(searches)["t0001"]
    assert (failed.is_done, failed.message) == (False, "evaluate: 'score' is nan")


def test_a_score_path_that_does_not_exist_names_the_keys(searches: Searches) -> None:
    searches.write(
        "trials: 3\nscore: results.acc", evaluate='echo "{\\"results\\": {\\"f1\\": 1}}"'
    )
    done = searches.run()
    assert done.code == 2
    assert "no value 'results.acc'" in done.err and "there is results.f1" in done.err


@pytest.mark.slow
def test_equal_recipes_are_merged_once(searches: Searches) -> None:
    space = "space: {models.1.parameters.weight: {choices: [0.5, 1]}}\n"
    searches.write("trials: 6\nsampler: random", space=space)
    assert searches.run().code == 0
    complete(searches, 6)
    found = results(searches)
    # A weight of 1 is the recipe as it stands.
    assert set(searches.merged()) <= {"average", "recipe", "t0000", "t0001", "t0002", "t0003"}
    assert len(searches.merged()) == 3
    twins = [r for r in found.values() if r.same_as]
    assert len(twins) == 5
    assert all(r.score == found[str(r.same_as)].score for r in twins)


@pytest.mark.slow
def test_a_grid_ends_with_its_last_point(searches: Searches) -> None:
    space = "space: {models.1.parameters.weight: {low: 0, high: 0.6, step: 0.3}}\n"
    searches.write("sampler: grid", space=space)
    assert searches.run().code == 0
    complete(searches, 3)
    assert [r.values["weight"] for n, r in results(searches).items() if n[0] == "t"] == [
        0,
        0.3,
        0.6,
    ]


@pytest.mark.slow
def test_parents_stay_as_they_are(searches: Searches) -> None:
    before = {p: p.read_bytes() for p in (searches.folder / "m1").rglob("*")}
    evaluate = "echo 5 > config.json; touch new.txt; mkdir -p eval; echo {} > eval/a.json; echo 1"
    searches.write("trials: 1", evaluate=evaluate)
    assert searches.run().code == 0
    assert {p: p.read_bytes() for p in (searches.folder / "m1").rglob("*")} == before
    assert (searches.folder / "runs" / "parent-m1" / "model" / "new.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "count"), [("all", 5), ("none", 0), ("2", 2)])
def test_weights_that_stay(searches: Searches, keep: str, count: int) -> None:
    searches.write(f"trials: 3\nkeep: {keep}")
    assert searches.run().code == 0
    merged = [
        p for p in (searches.folder / "runs").rglob("model.safetensors") if not p.is_symlink()
    ]
    assert len(merged) == count
    assert (searches.folder / "runs" / "best.yml").exists()


@pytest.mark.slow
def test_the_end_repeats_and_validates_the_best_and_the_parents(searches: Searches) -> None:
    noisy = "echo $((RANDOM % 2 ? 100 : 101))"
    searches.write("trials: 2\nrepeat: 3\nvalidate: 'echo 5'\nkeep: none", evaluate=noisy)
    done = searches.run()
    assert done.code == 0, done.err
    assert "repeated   3 times: mean 10" in done.out
    validated = [line.split()[1] for line in done.out.splitlines() if line.startswith("validated")]
    best = next(line.split()[1] for line in done.out.splitlines() if line.startswith("best"))
    assert validated == [best, "parent-m1:", "parent-m2:"]
    assert "WARNING: " in done.out
    # Done once.
    stamps = sorted(
        p.stat().st_mtime_ns for p in (searches.folder / "runs").rglob("validation.json")
    )
    assert len(stamps) == 3
    assert searches.run().code == 0
    again = sorted(
        p.stat().st_mtime_ns for p in (searches.folder / "runs").rglob("validation.json")
    )
    assert again == stamps


@pytest.mark.slow
def test_a_gain_within_the_noise_is_named(searches: Searches) -> None:
    evaluate = (
        "case $MERGE_SEARCH_CANDIDATE in parent*) a=0.50;; *) a=0.51;; esac; "
        'echo "{\\"acc\\": $a, \\"acc_stderr\\": 0.02}"'
    )
    searches.write("trials: 1\nscore: acc", evaluate=evaluate)
    done = searches.run()
    assert "gain       0.01 better than the best parent" in done.out
    # 2 · √(0.02² + 0.02²)
    assert "WARNING: within the noise: differences below 0.0566 mean nothing here" in done.out


@pytest.mark.slow
def test_the_perplexity_is_built_in(tmp_path: Path) -> None:
    for name in ("m1", "m2"):
        write_tokenizer(make(tmp_path / name, "LlamaForCausalLM", "llama"))
    searches = Searches(tmp_path)
    (tmp_path / "held.txt").write_text("the cat\n\nab the\n\nthe the ab\n")
    text = f"{RECIPE}{SPACE}perplexity: held.txt\ntrials: 1\nvalidate: {{perplexity: held.txt}}\n"
    (tmp_path / "s.yml").write_text(text)
    done = searches.run("--device", "cpu")
    assert done.code == 0, done.err
    found = results(searches)
    assert all(result.is_done and result.score and result.score > 1 for result in found.values())
    assert list(found["t0000"].parts) == ["perplexity"]
    assert done.out.count("validated") == 3


def stopped(searches: Searches, *words: str, after: str) -> Done:
    """Run a worker and end it by SIGTERM once a file is there."""
    child = searches.start(*words)
    end = time.monotonic() + 60
    while not (searches.folder / after).exists() and time.monotonic() < end:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    return Done(child.returncode, out, err)


@pytest.mark.slow
def test_sigterm_ends_an_evaluation_and_the_search_continues(searches: Searches) -> None:
    evaluate = (
        "touch $MERGE_SEARCH_FOLDER/began; [ -e $MERGE_SEARCH_FOLDER/go ] || sleep 99; echo 1"
    )
    searches.write("trials: 1", evaluate=evaluate)
    done = stopped(searches, after="began")
    assert done.code == 75, done.err
    assert "run the same command to resume" in done.err and "Traceback" not in done.err
    left = subprocess.run(["pgrep", "-f", str(searches.folder)], capture_output=True, text=True)
    assert left.stdout == ""
    (searches.folder / "go").touch()
    assert searches.run().code == 0
    complete(searches, 1)


def test_the_deadline_ends_the_search(searches: Searches) -> None:
    searches.write("trials: 1", evaluate="sleep 99")
    began = time.monotonic()
    done = searches.run("--deadline", "3s")
    assert done.code == 75 and "stopped at the deadline" in done.err
    assert time.monotonic() - began < 50


@pytest.mark.slow
def test_a_folder_of_another_search_is_refused(searches: Searches) -> None:
    searches.write("trials: 1")
    assert searches.run().code == 0
    searches.write("trials: 1", space="space: {models.0.parameters.weight: [0, 1]}\n")
    done = searches.run()
    assert done.code == 4 and "holds another search" in done.err


def test_missing_models_stop_early(searches: Searches) -> None:
    text = searches.write("trials: 3").read_text().replace("model: m2", "model: m9")
    (searches.folder / "s.yml").write_text(text)
    done = searches.run()
    assert done.code == 3
    assert "m9" in done.err and "Traceback" not in done.err


def test_without_optuna(searches: Searches) -> None:
    searches.write("trials: 1")
    done = searches.run(patch="sys.modules['optuna'] = None")
    assert done.code == 2
    assert "search: optuna is missing in" in done.err
    assert "install 'optuna>=4.2,<6' cmaes scipy (the extra search)" in done.err


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2", "qmc", "random", "auto"])
def test_samplers(tmp_path: Path, sampler: str) -> None:
    from merge_worker.search.study import Study

    text = f"""
recipe: {{merge_method: linear, models: [{{model: x}}, {{model: y}}]}}
space:
  models.0.parameters.weight: [0, 1]
  models.1.parameters.weight: {{low: 1, high: 5, step: 1}}
evaluate: x
sampler: {sampler}
trials: 14
"""
    search = read_search(text, "s.yml", Path())
    drawn = []
    for _ in range(14):
        trial = Study(search, tmp_path).ask()
        first, second = trial.coordinates.values()
        assert 0 <= float(first or 0) <= 1 and second in (1, 2, 3, 4, 5)
        drawn.append(trial.coordinates)
        Study(search, tmp_path).tell(trial.number, -((float(first or 0) - 0.3) ** 2))
    assert len({json.dumps(each) for each in drawn}) > 10
    # The seed decides.
    (tmp_path / "other").mkdir()
    assert Study(search, tmp_path / "other").ask().coordinates == drawn[0]


def test_workers_that_ask_at_once_draw_different_values(tmp_path: Path) -> None:
    from merge_worker.search.study import Study

    text = "recipe: {merge_method: linear, models: [{model: x}, {model: y}]}\nevaluate: x\n"
    text += "space: {models.0.parameters.weight: [0, 1]}\n"
    for sampler in ("random", "qmc", "tpe", "gp"):
        search = read_search(f"{text}sampler: {sampler}", "s.yml", Path())
        (tmp_path / sampler).mkdir()
        asked = [Study(search, tmp_path / sampler).ask() for _ in range(4)]
        assert len({json.dumps(trial.coordinates) for trial in asked}) == 4
