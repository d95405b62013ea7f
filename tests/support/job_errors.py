"""Mistakes in commands of merge-launch."""

from support.error_cases import TWO, Mistake, write
from support.recipe_errors import LINEAR

OLD = "--cuda --lazy-unpickle --copy-tokenizer --out-shard-size 1B --allow-crimes"

OF_JOBS = [
    Mistake("One model is no merge", "merge-launch local out m1", 2),
    Mistake("An option with a typo", "merge-launch local out m1 m2 --dtpye bfloat16", 2),
    Mistake("A backend with a typo", "merge-launch slrum out m1 m2", 2),
    Mistake(
        "Weights beside a recipe",
        "merge-launch local recipe.yml out --weights 1,2",
        2,
        recipe=LINEAR,
    ),
    Mistake("A recipe that is elsewhere", "merge-launch local recepe.yml out", 2),
    Mistake("Two outputs", "merge-launch local recipe.yml out -o other", 2, recipe=LINEAR),
    Mistake("A model with a typo", "merge-launch local out m1 m22", 3),
    Mistake("A walltime in words", "merge-launch pbs out m1 m2 --walltime long", 2),
    Mistake("Memory without a unit that PBS knows", "merge-launch pbs out m1 m2 --mem 80gigs", 2),
    Mistake("A profile that does not exist", "merge-launch slurm out m1 m2 --profile gadi2", 2),
    Mistake(
        "A profile with a typo",
        "merge-launch slurm out m1 m2",
        2,
        prepare=write("merge-launch.toml", "[profile.default]\npartion = 'gpu'\n"),
    ),
    Mistake("No scheduler here", "merge-launch pbs out m1 m2", 6),
    Mistake("No mount for a container", "merge-launch beaker out m1 m2", 2),
    Mistake("A directive that is two", "merge-launch slurm out m1 m2 --partition 'a b'", 2),
    Mistake(
        "A merge that the check refuses",
        "merge-launch check recipe.yml",
        3,
        recipe=f"merge_method: ties\nbase_model: base\n{TWO}- {{model: m4}}\n",
    ),
    Mistake("A job that nobody knows", "merge-launch status 12345", 2),
    Mistake(
        "Options of mergekit",
        f"merge-launch local recipe.yml out {OLD}",
        0,
        made="They are taken, each with a word on what it is here.",
        recipe=LINEAR,
    ),
    Mistake(
        "mergekit's own command line", f"merge-worker merge recipe.yml out {OLD}", 0, recipe=LINEAR
    ),
]
