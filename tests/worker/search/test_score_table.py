"""Tables of scores per model and task, in the forms that people have them."""

import pytest

from merge_worker.errors import UsageError
from merge_worker.search.score_table import ScoreTable, read_table

EXPECTED = ScoreTable(("m1", "m2"), ("math", "code"), ((0.61, 0.32), (0.48, 0.55)))
FORMS = {
    "csv": "model,math,code\nm1,0.61,0.32\nm2,0.48,0.55\n",
    "semicolons, spaces and a byte order mark": "\ufeffmodel; math; code\n"
    "m1 ;0.61;0.32\n\nm2;.48;0.55",
    "tabs": "\tmath\tcode\r\nm1\t0.61\t0.32\r\nm2\t0.48\t0.55\r\n",
    "quotes": '"model","math","code"\n"m1","0.61","0.32"\n"m2","0.48","0.55"\n',
    "mapping": '{"m1": {"math": 0.61, "code": 0.32}, "m2": {"code": 0.55, "math": 0.48}}',
    "rows": ' [{"model": "m1", "math": 0.61, "code": 0.32},'
    ' {"model": "m2", "math": 0.48, "code": 0.55}]',
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    assert read_table(FORMS[form], "t") == EXPECTED


def test_percent() -> None:
    assert read_table("m,a\nx,61%\ny,7.5 %\n", "t").scores == ((61,), (7.5,))


FAULTS = {
    "": "expected a line 'model,TASK,TASK…'",
    "model,math\n": "expected a line 'model,TASK,TASK…'",
    "just words": "expected a line 'model,TASK,TASK…'",
    "model,math\nm1,0.5\n": "expected the scores of two or more models; found 1",
    "model,a,b\nm1,1,2\nm2,1\n": "t: row 3: 1 scores for 2 tasks",
    "model,a,a\nm1,1,2\nm2,1,2\n": "a task stands twice",
    "model,a\nm1,1\nm1,2\n": "t: m1 stands twice",
    "model,a\nm1,1\nm2,\n": "t: m2, a: expected a number, missing",
    "model,a\nm1,1\nm2,n/a\n": "t: m2, a: expected a number, 'n/a'",
    "model,a\nm1,1\nm2,nan\n": "t: m2, a: expected a number, nan",
    "{": "t: not valid JSON",
    "[1, 2]": "expected scores by model and task",
    '{"m1": 5}': "expected scores by model and task",
    '[{"math": 1}]': "expected scores by model and task",
    '{"m1": {"a": 1}, "m2": {"a": true}}': "t: m2, a: expected a number, True",
    '{"m1": {"a": 1}, "m2": {"b": 1}}': "t: m1, b: expected a number, missing",
    "{}": "expected the scores of two or more models; found 0",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_table(text, "t")
    assert FAULTS[text] in str(caught.value)


def test_rows_of_the_models_of_a_recipe() -> None:
    table = read_table(FORMS["csv"], "t")
    assert table.of(["/models/m2", "m1"], "t").scores == ((0.48, 0.55), (0.61, 0.32))
    assert table.of(["org/m1", "m2/"], "t").scores == EXPECTED.scores
    with pytest.raises(UsageError, match=r"no scores of other; there are m1, m2"):
        table.of(["m1", "other"], "t")
    twins = read_table("m,a\na/m,1\nb/m,2\n", "t")
    with pytest.raises(UsageError, match="m may be any of 2 rows"):
        twins.of(["m"], "t")
    assert twins.of(["b/m"], "t").scores == ((2,),)
