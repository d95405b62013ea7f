"""Other programs: their answers, their failures in their own words, and their silence."""

import sys
from pathlib import Path

import pytest

from merge_launch.errors import ClusterError
from merge_launch.process import CommandFailed, answer, error_lines, foreground


def test_an_answer() -> None:
    assert answer(["printf", "%s|", "a b", "$HOME"]) == "a b|$HOME|"


def test_a_missing_program() -> None:
    with pytest.raises(ClusterError, match="no-such-qsub is not on this machine's PATH"):
        answer(["no-such-qsub", "x"])


def test_a_failure_keeps_what_was_printed() -> None:
    with pytest.raises(CommandFailed) as caught:
        answer(["bash", "-c", "echo half an answer; echo the reason >&2; exit 153"])
    assert (caught.value.status, caught.value.output) == (153, "half an answer\n")
    assert str(caught.value) == "bash failed with status 153: the reason"


def test_silence_is_bounded() -> None:
    with pytest.raises(ClusterError, match="did not answer within 0 s"):
        answer(["sleep", "20"], timeout_s=0.2)


def test_a_program_that_cannot_start(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "qsub").write_text("#!/no/such/interpreter\n")
    (tmp_path / "qsub").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="qsub: No such file"):
        answer(["qsub"])


def test_it_reads_nothing_from_our_terminal() -> None:
    assert answer(["cat"]) == ""


def test_own_words_leave_usage_and_terminal_codes_out() -> None:
    text = "qsub: illegal -N value\x1b[31m\n\nUsage: qsub …\n\t[-A x]\n"
    assert error_lines(text) == r"qsub: illegal -N value\x1b[31m"


def test_own_words_are_the_reason_not_the_call() -> None:
    """As the qsub of slurm-wlm-torque says it."""
    text = (
        "There was an error running the Slurm sbatch command.\nThe command was:\n"
        "'/usr/bin/sbatch -e a.e%A a 2>&1'\nand the output was:\n"
        "'sbatch: error: invalid partition specified: nowhere\n"
        " sbatch: error: Batch job submission failed: Invalid partition name specified\n'\n"
    )
    assert error_lines(text) == (
        "sbatch: error: invalid partition specified: nowhere\n"
        "  sbatch: error: Batch job submission failed: Invalid partition name specified"
    )


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 75", 75), ("kill -9 $$", 137)])
def test_exit_codes_as_a_shell_gives_them(script: str, code: int) -> None:
    assert foreground(["bash", "-c", script]) == code


def test_foreground_leaves_signals_as_they_were() -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    foreground([sys.executable, "-c", ""])
    assert signal.getsignal(signal.SIGINT) is before
