"""The metrics against the paper's Table 2 and against their definitions on small matrices."""

import json
import random

import pytest

from gsr_kernels.continual.metrics import BEFORE, ResultMatrix

TASKS = tuple("ABCDE")
PRETRAINED = (43.02, 14.94, 30.94, 33.54, 5.700, 0.316)

# Table 2 of the GSR paper: scores on MMLU, A .. E after each task
SCORES = {
    "SeqFT": {
        "A": (36.85, 22.01, 30.88, 33.54, 5.512, 0.323),
        "B": (44.03, 21.40, 30.59, 34.06, 5.546, 0.318),
        "C": (43.49, 20.22, 30.82, 33.54, 5.536, 0.307),
        "D": (43.14, 18.12, 30.76, 33.93, 5.532, 0.309),
        "E": (43.04, 14.62, 30.68, 33.54, 5.549, 0.310),
    },
    "PSP": {
        "A": (42.28, 23.61, 30.62, 33.54, 5.523, 0.311),
        "B": (44.25, 22.57, 30.85, 33.54, 5.530, 0.314),
        "C": (44.12, 21.00, 31.00, 33.54, 5.538, 0.311),
        "D": (43.78, 18.78, 30.62, 33.54, 5.549, 0.302),
        "E": (43.53, 15.80, 30.79, 33.54, 5.529, 0.309),
    },
    "SR": {
        "A": (36.68, 21.85, 29.80, 36.33, 8.169, 0.186),
        "B": (43.97, 22.23, 32.84, 36.20, 8.430, 0.189),
        "C": (43.46, 20.14, 32.81, 36.52, 8.153, 0.175),
        "D": (43.15, 17.85, 32.98, 32.50, 4.932, 0.143),
        "E": (42.98, 14.89, 32.14, 28.39, 6.140, 0.529),
    },
    "GSR": {
        "A": (40.89, 22.23, 30.74, 33.54, 5.523, 0.316),
        "B": (44.00, 21.53, 30.82, 33.54, 5.542, 0.326),
        "C": (43.79, 20.01, 30.65, 33.54, 5.519, 0.304),
        "D": (43.82, 18.73, 30.79, 33.54, 5.522, 0.310),
        "E": (43.51, 17.05, 30.85, 33.54, 5.532, 0.322),
    },
    # one model a task, each trained on its task alone from the pretrained model
    "PerFT": {
        "A": (36.85, 22.01, 30.88, 33.54, 5.512, 0.323),
        "B": (44.27, 13.47, 32.19, 32.37, 5.519, 0.290),
        "C": (43.02, 18.76, 30.36, 34.32, 5.391, 0.168),
        "D": (44.24, 18.92, 30.74, 33.93, 6.811, 0.231),
        "E": (43.51, 15.82, 31.09, 28.97, 5.474, 0.577),
    },
    # all tasks at once: there is the last row alone
    "MTL": {"E": (43.65, 22.12, 31.52, 34.06, 4.816, 0.532)},
}
PRINTED_FRA = {
    "SeqFT": {"B": -0.200, "C": 0.700, "D": 1.112, "E": 1.779},
    "PSP": {"B": -0.095, "C": 0.863, "D": 1.420, "E": 1.752},
    "SR": {"B": -0.665, "C": 0.877, "D": 2.270, "E": 3.218},
    "GSR": {"B": -0.140, "C": 0.867, "D": 0.928, "E": 1.126},  # the paper prints 1.090 for the last
}
PRINTED_AP = {
    "SeqFT": {"A": 21.519, "B": 22.657, "C": 22.319, "D": 21.965, "E": 21.290},
    "PSP": {"A": 22.647, "B": 22.842, "C": 22.585, "D": 22.095, "E": 21.583},
    "SR": {"A": 22.169, "B": 23.976, "C": 23.543, "D": 21.926, "E": 20.845},
    "GSR": {"A": 22.206, "B": 22.626, "C": 22.302, "D": 22.119, "E": 21.801},
    "PerFT": {"A": 21.519, "B": 21.352, "C": 22.003, "D": 22.479, "E": 20.907},
    "MTL": {"E": 22.783},
}


def table2(method):
    matrix = ResultMatrix(TASKS, known=["MMLU"])
    matrix.record(BEFORE, dict(zip(matrix.columns, PRETRAINED)))
    for task, row in SCORES[method].items():
        matrix.record(task, dict(zip(matrix.columns, row)))
    return matrix


@pytest.mark.parametrize("method", PRINTED_FRA)
def test_fra_of_table2(method):
    matrix = table2(method)
    for task, printed in PRINTED_FRA[method].items():
        # half a unit of the last printed digit, and the last bit of a float
        assert matrix.fra(task) == pytest.approx(printed, abs=5.001e-4), task
    assert matrix.fra() == matrix.fra("E")


@pytest.mark.parametrize("method", PRINTED_AP)
def test_ap_of_table2(method):
    matrix = table2(method)
    for task, printed in PRINTED_AP[method].items():
        assert matrix.ap(task) == pytest.approx(printed, abs=5.001e-4), task
    assert matrix.ap() == matrix.ap("E")


def test_ap_before_training():
    assert table2("SeqFT").ap(BEFORE) == pytest.approx(21.409, abs=5.001e-4)


def random_matrix(seed, tasks=4, known=0):
    generator = random.Random(seed)
    matrix = ResultMatrix([f"t{i}" for i in range(1, tasks + 1)], known=[f"k{i}" for i in range(1, known + 1)])
    for row in (BEFORE, *matrix.tasks):
        matrix.record(row, {name: generator.uniform(0, 100) for name in matrix.columns})
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_definitions_without_known_tasks(seed):
    matrix = random_matrix(seed)
    t1, t2, t3, t4 = rows = matrix.tasks
    a = matrix.score
    assert matrix.fra() == pytest.approx(
        (max(a(t1, t1), a(t1, t2), a(t1, t3)) + max(a(t2, t2), a(t2, t3)) + a(t3, t3) - sum(a(t, t4) for t in rows)
         + a(t4, t4)) / 3
    )  # fmt: skip
    assert matrix.ap() == pytest.approx(sum(a(t, t4) for t in rows) / 4)
    assert matrix.bwt() == pytest.approx(sum(a(t, t4) - a(t, t) for t in (t1, t2, t3)) / 3)
    best = max(a(t2, t1), a(t2, t2)), max(a(t3, t1), a(t3, t2), a(t3, t3))
    assert matrix.fr() == pytest.approx((a(t1, t1) + sum(best) - a(t1, t4) - a(t2, t4) - a(t3, t4)) / 3)
    rows = dict(zip(matrix.tasks, (1, 2, 3, 4)))
    assert matrix.acc(rows) == pytest.approx(sum(n * a(t, t4) for t, n in rows.items()) / 10)
    alone = random_matrix(seed + 9)
    before = ((t2, t1), (t3, t2), (t4, t3))
    assert matrix.fwt(alone) == pytest.approx(sum(a(t, s) - alone.score(t, t) for t, s in before) / 3)
    anytime = (a(t1, t1), (a(t1, t2) + a(t2, t2)) / 2, (a(t1, t3) + a(t2, t3) + a(t3, t3)) / 3, matrix.ap())
    assert matrix.aaa() == pytest.approx(sum(anytime) / 4)


def test_known_tasks_count_as_learned_before_the_first():
    matrix = random_matrix(0, tasks=1, known=1)
    a = matrix.score
    lost = a("k1", BEFORE) - a("k1", "t1")
    assert matrix.fra() == pytest.approx(lost)
    assert matrix.bwt() == pytest.approx(-lost) and matrix.fr() == pytest.approx(lost)
    assert matrix.aaa() == pytest.approx((a("k1", "t1") + a("t1", "t1")) / 2)
    with pytest.raises(ValueError, match="FWT needs two trained tasks"):
        matrix.fwt(matrix)
    with pytest.raises(ValueError, match="Acc needs the number of test rows of t1"):
        matrix.acc({"k1": 3})


@pytest.mark.parametrize("metric", ["fra", "bwt"])
@pytest.mark.parametrize("after", ["t1", "t2", "t3", None])
def test_a_prefix_is_the_run_that_ended_there(metric, after):
    whole = random_matrix(1, known=2)
    end = len(whole.tasks) if after is None else whole.tasks.index(after) + 1
    prefix = ResultMatrix(whole.tasks[:end], known=whole.known)
    for row in (BEFORE, *prefix.tasks):
        prefix.record(row, {name: whole.score(name, row) for name in prefix.columns})
    assert getattr(whole, metric)(after) == pytest.approx(getattr(prefix, metric)())


def test_row_zero_is_optional_without_known_tasks():
    matrix = ResultMatrix(["a", "b"])
    matrix.record("a", {"a": 90.0, "b": 10.0})
    matrix.record("b", {"a": 70.0, "b": 80.0})
    assert matrix.fra() == -matrix.bwt() == pytest.approx(20.0)
    assert matrix.ap() == pytest.approx(75.0)


def test_missing_cells_are_refused_by_name():
    matrix = ResultMatrix(["a", "b"], known=["general"])
    matrix.record("a", {"a": 90.0, "general": 20.0})
    matrix.record("b", {"a": 70.0, "general": 30.0})
    with pytest.raises(ValueError, match="score on b after b is missing"):
        matrix.ap()
    with pytest.raises(ValueError, match="score on general before any training is missing"):
        matrix.fra()


def test_json_round_trip_keeps_missing_cells():
    matrix = random_matrix(2, known=1)
    assert ResultMatrix.from_dict(json.loads(json.dumps(matrix.to_dict()))) == matrix
    partial = ResultMatrix(["a", "b"])
    partial.record("a", {"a": 0.1 + 0.2})
    again = ResultMatrix.from_dict(partial.to_dict())
    assert again == partial and again.score("a", "a") == 0.1 + 0.2
    assert partial.to_dict()["cells"][0] == [None, None]


@pytest.mark.parametrize(
    "text",
    ['""', "{}", "[1]", '{"tasks": ["a"], "known": [], "cells": [[1.0]]}', '{"tasks": [], "known": [], "cells": []}',
     '{"tasks": ["a"], "known": [], "cells": [[1.0], [Infinity]]}'],
)  # fmt: skip
def test_json_of_something_else_is_refused(text):
    with pytest.raises(ValueError, match="no result matrix"):
        ResultMatrix.from_dict(json.loads(text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "tasks is empty"),
        (("AB",), "tasks must be a list of names, not the text 'AB'"),
        ((["A"], "B"), "known must be a list of names, not the text 'B'"),
        ((["a", "b", "a"],), "name a more than once"),
        ((["a"], ["a"]), "name a more than once"),
        (([BEFORE],), "may be called 'before'"),
    ],
)
def test_bad_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResultMatrix(*arguments)


NO_NUMBERS = [float("nan"), float("inf"), "1", None, [1.0]]


def test_bad_scores_are_refused_and_nothing_is_set():
    matrix = ResultMatrix(["a", "b"])
    for scores, message in [
        ({"a": 1.0, "c": 2.0}, "'c', which is no task"),
        *(({"a": 1.0, "b": bad}, r"scores\['b'\] is .*: it must be a finite number") for bad in NO_NUMBERS),
    ]:
        with pytest.raises(ValueError, match=message):
            matrix.record("a", scores)
    with pytest.raises(ValueError, match="'c', which is no task"):
        matrix.record("c", {"a": 1.0})
    assert matrix == ResultMatrix(["a", "b"])


def test_metrics_that_need_an_earlier_task_refuse_one():
    matrix = ResultMatrix(["a"])
    matrix.record("a", {"a": 50.0})
    assert matrix.ap() == 50.0
    for metric in (matrix.fra, matrix.bwt):
        with pytest.raises(ValueError, match="a learned one to look back on"):
            metric()
        with pytest.raises(ValueError, match="needs a trained task"):
            getattr(random_matrix(0, known=2), metric.__name__)(BEFORE)
