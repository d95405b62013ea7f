"""Mistakes in commands of merge-worker and in recipes."""

from support.error_cases import TWO, Mistake, write

CHECK = "merge-worker check recipe.yml"
MERGE = "merge-worker merge recipe.yml out"
LINEAR = f"merge_method: linear\n{TWO}"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)
STACKED = "merge_method: passthrough\nslices:\n- sources: [{{model: m1, layer_range: {}}}]\n"

OF_COMMANDS = [
    Mistake("A command that does not exist", "merge-worker marge recipe.yml out", 2),
    Mistake("No output folder", "merge-worker merge recipe.yml", 2, recipe=LINEAR),
    Mistake("No model", "merge-worker average out", 2),
    Mistake("An option that does not exist", "merge-worker average out m1 m2 --mem 4GiB", 2),
    Mistake("A weight too few", "merge-worker average out m1 m2 m3 --weights 1,2", 2),
    Mistake("Weights that are no numbers", "merge-worker average out m1 m2 --weights 1,half", 2),
    Mistake("Weights that add up to nothing", "merge-worker average out m1 m2 --weights 1,-1", 2),
    Mistake("A method with a typo", "merge-worker average out m1 m2 --method tise", 2),
    Mistake("A method that needs a base", "merge-worker average out m1 m2 --method ties", 2),
    Mistake("A dtype by its short name", "merge-worker average out m1 m2 --dtype bf16", 2),
    Mistake("A dtype that no average has", "merge-worker average out m1 m2 --dtype int8", 2),
    Mistake("A size in words", "merge-worker average out m1 m2 --memory lots", 2),
    Mistake("Shards of nothing", "merge-worker average out m1 m2 --shard-size 0", 2),
    Mistake("A device that does not exist", "merge-worker average out m1 m2 --device gpu", 2),
    Mistake("No threads", "merge-worker average out m1 m2 --threads 0", 2),
    Mistake("A deadline in words", "merge-worker average out m1 m2 --deadline noon", 2),
    Mistake("A schedule with a typo", "merge-worker average out m1 m2 --schedule emma:0.9", 2),
    Mistake(
        "A schedule beside weights",
        "merge-worker average out m1 m2 --schedule ema:0.9 --weights 1,2",
        2,
    ),
    Mistake("The page of a method with a typo", "merge-worker methods della-liner", 2),
    Mistake("A pattern that fits nothing", "merge-worker average out m1 m2 --include vision", 2),
    Mistake(
        "Two merges into one folder",
        f"{MERGE.replace('merge ', 'merge -a ', 1)} -a recipe.yml out",
        2,
        recipe=LINEAR,
    ),
]

OF_FILES = [
    Mistake("A recipe that is not there", "merge-worker check recepe.yml", 3),
    Mistake("A folder for a recipe", "merge-worker check m1", 3),
    Mistake(
        "Weights for a recipe",
        "merge-worker check m1/model.safetensors",
        2,
    ),
    Mistake("An empty recipe", CHECK, 2, prepare=write("recipe.yml", "")),
    Mistake("Tabs in YAML", CHECK, 2, recipe="merge_method: linear\nmodels:\n\t- model: m1\n"),
    Mistake("A bracket left open", CHECK, 2, recipe="merge_method: linear\nmodels: [m1, m2\n"),
    Mistake("A list for a recipe", CHECK, 2, recipe="- model: m1\n- model: m2\n"),
    Mistake(
        "A tag that would make an object",
        CHECK,
        2,
        recipe="merge_method: !!python/object/apply:os.system [ls]\n",
    ),
    Mistake(
        "Aliases that multiply",
        CHECK,
        2,
        made="`recipe.yml` is 400 bytes that stand for ten million entries.",
        prepare=write("recipe.yml", BOMB),
    ),
]

OF_RECIPES = [
    Mistake("A key with a typo", CHECK, 2, recipe=f"merge_metod: linear\n{TWO}"),
    Mistake("No method", CHECK, 2, recipe=TWO),
    Mistake("An unknown method", CHECK, 2, recipe=f"merge_method: dare\n{TWO}"),
    Mistake("No models", CHECK, 2, recipe="merge_method: linear\n"),
    Mistake(
        "Models and slices",
        CHECK,
        2,
        recipe=f"{LINEAR}slices:\n- sources: [{{model: m1, layer_range: [0, 1]}}]\n",
    ),
    Mistake("A model twice", CHECK, 2, recipe=LINEAR.replace("m2", "m1")),
    Mistake(
        "A weight forgotten",
        CHECK,
        2,
        recipe="merge_method: linear\nmodels:\n"
        "- {model: m1, parameters: {weight: 1}}\n- model: m2\n",
    ),
    Mistake("A weight in words", CHECK, 2, recipe=LINEAR.replace("1}", "much}", 1)),
    Mistake("A weight that is not a number", CHECK, 2, recipe=LINEAR.replace("1}", ".nan}", 1)),
    Mistake("Weights that cancel", CHECK, 2, recipe=LINEAR.replace("1}", "-1}", 1)),
    Mistake("A gradient of nothing", CHECK, 2, recipe=LINEAR.replace("1}", "[]}", 1)),
    Mistake(
        "A parameter with a typo",
        CHECK,
        0,
        made="It is a warning, and an error with `--strict`.",
        recipe=f"{LINEAR}parameters: {{normalise: true}}\n",
    ),
    Mistake(
        "A parameter with a typo, strictly",
        f"{CHECK} --strict",
        2,
        recipe=f"{LINEAR}parameters: {{normalise: true}}\n",
    ),
    Mistake("No base", CHECK, 2, recipe=f"merge_method: ties\n{TWO}"),
    Mistake(
        "A density below zero",
        CHECK,
        2,
        recipe=f"merge_method: ties\nbase_model: base\nparameters: {{density: -0.5}}\n{TWO}",
    ),
    Mistake(
        "Three models for slerp",
        CHECK,
        2,
        recipe="merge_method: slerp\nbase_model: m1\n"
        "parameters: {t: 0.5}\nmodels: [{model: m1}, {model: m2}, {model: m3}]\n",
    ),
    Mistake(
        "slerp without t",
        CHECK,
        2,
        recipe="merge_method: slerp\nbase_model: m1\nmodels: [{model: m1}, {model: m2}]\n",
    ),
    Mistake("A dtype by its short name, in a recipe", CHECK, 2, recipe=f"{LINEAR}dtype: bf16\n"),
    Mistake("Layers that the model has not", CHECK, 2, recipe=STACKED.format("[0, 32]")),
    Mistake("Layers backwards", CHECK, 2, recipe=STACKED.format("[2, 0]")),
    Mistake(
        "Slices of different depth",
        CHECK,
        2,
        recipe="merge_method: linear\n"
        "parameters: {weight: 1}\nslices:\n- sources:\n"
        "  - {model: m1, layer_range: [0, 2]}\n  - {model: m2, layer_range: [0, 1]}\n",
    ),
    Mistake(
        "A union of tokens where there are no tokenizers",
        CHECK,
        3,
        recipe=f"{LINEAR}tokenizer_source: union\n",
    ),
    Mistake("A chat template with a typo", CHECK, 2, recipe=f"{LINEAR}chat_template: chatlm\n"),
    Mistake(
        "Two documents of one name", CHECK, 2, recipe=f"name: x\n{LINEAR}---\nname: x\n{LINEAR}"
    ),
    Mistake(
        "Documents that need each other",
        CHECK,
        2,
        recipe="".join(
            f"---\nname: {a}\nmerge_method: linear\nparameters: {{weight: 1}}\n"
            f"models: [{{model: {b}}}, {{model: m1}}]\n"
            for a, b in ("xy", "yx")
        )
        + "---\nmerge_method: linear\nparameters: {weight: 1}\n"
        "models: [{model: x}, {model: m1}]\n",
    ),
    Mistake(
        "Values of several models that are missing or wrong",
        CHECK,
        2,
        recipe="merge_method: ties\nbase_model: base\n"
        "models:\n- {model: m1, parameters: {weight: 1, density: 20}}\n"
        "- {model: m2, parameters: {density: 0.2}}\n",
    ),
    Mistake(
        "Several mistakes at once",
        CHECK,
        2,
        recipe="merge_method: tie\nbase_modle: base\n"
        "dtype: half\nmodels:\n- {model: m1, parameters: {wieght: 1}}\n- {model: m1}\n",
    ),
]
