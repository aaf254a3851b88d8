"""Report of a sequential run: the paper's table and a verdict in words."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence

from gsr_kernels.cli import aligned
from gsr_kernels.continual.differences import interval, judge, over
from gsr_kernels.continual.figures import FIGURES, JUDGED, baseline_of, gains, measure, select
from gsr_kernels.continual.methods import bound_of
from gsr_kernels.continual.metrics import BEFORE, ResultMatrix, Results

LEGEND = """\
better, worse: the 95 % t interval of the differences, seed by seed, leaves zero out; unclear: it does not.
Each figure is judged by itself."""
# of a table's cells and of its two columns of names, at least
CELL = 10
NAMES = (8, 15)


def report(results: Results, conditions: str, *notes: str) -> str:
    """Return all that is printed: conditions, table, figures, verdict, notes."""
    parts = [conditions, table(results.matrices)]
    found, lacking = measure(results)
    if found:
        parts.append(figures(found, results.seeds))
    named = [
        f"{name}: {each.about}"
        for name, each in FIGURES.items()
        if any(name in one for of in found.values() for one in of)
    ]
    known = ", ".join(next(iter(results.matrices.values()))[0].known)
    named += [f"{known} counts as learned before the first task"] if known and named else []
    without = [f"Without {name}: {why}." for name, why in lacking.items()]
    parts.append("\n".join([*textwrap.wrap("; ".join(named) + ".", 120), *without, LEGEND]))
    if results.validation:
        parts.append(f"On the validation rows, which are not learned:\n\n{table(results.validation)}")
    if results.sweeps:
        parts.append(selection(results))
    baseline = baseline_of(results)
    if baseline in found:
        others = {title: each for title, each in found.items() if title != baseline}
        parts += [verdict(title, each, found[baseline], baseline) for title, each in others.items()]
    return "\n\n".join([*parts, *notes]) + "\n"


def table(matrices: Mapping[str, Sequence[ResultMatrix]]) -> str:
    """Return the paper's Table 2: every score after each task, then F.Ra and AP; mean ± deviation over the seeds."""
    first = next(iter(matrices.values()))
    rows: list[list[str]] = [_row("start", "", first, BEFORE)]
    for title, each in matrices.items():
        tasks = each[0].tasks
        rows.append([])
        if bound_of(title) == "at once":
            rows.append(_row(title, "all at once", each, tasks[-1]))
        elif bound_of(title) == "alone":
            rows += [_row(title, f"{task} only", each, task) for task in tasks]
        else:
            rows += [_row(title, task, each, task, _forgotten(each, task)) for task in tasks]
    lines = aligned([["", "after", *first[0].columns, "F.Ra", "AP"], *rows], NAMES, CELL)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def figures(found: Mapping[str, Sequence[Mapping[str, float]]], seeds: Sequence[int] = ()) -> str:
    """Return the figures of each method at the end, a line a method, and below it one for each of several seeds."""
    names = [name for name in FIGURES if any(name in each for of in found.values() for each in of)]
    rows = [["", "at the end", *names]]
    for title, each in found.items():
        rows.append([title, "", *(_cell(each, name) for name in names)])
        if len(each) > 1:
            rows += [["", f"seed {seed}", *(_cell([one], name) for name in names)] for seed, one in zip(seeds, each)]
    return "\n".join(line.rstrip() for line in aligned(rows, NAMES, CELL))


def selection(results: Results) -> str:
    """Return the value that the validation rows choose of each sweep, or that nothing chooses."""
    if not results.validation:
        return "No value of --sweep is chosen: test rows choose none, and there are no validation rows (--validation)."
    lines = ["Chosen among the values of --sweep by the mean score on the validation rows, not by the test rows:"]
    for method, scores in select(results).items():
        best, *others = (f"{title.removeprefix(method).strip()} ({score:.1f})" for title, score in scores.items())
        lines.append(f"  {method}: {best}" + f"; then {', '.join(others)}" * bool(others))
    return "\n".join(lines)


def _cell(values: Sequence[Mapping[str, float]], name: str) -> str:
    return over([one[name] for one in values]) if all(name in one for one in values) else "–"


def verdict(
    title: str, ours: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]], name: str = "SeqFT"
) -> str:
    """Compare a method's figures with the baseline's, seed by seed, in words; see ``judge`` for a difference."""
    gained = {figure: each for figure, each in gains(ours, baseline).items() if figure in JUDGED}
    said = {figure: _in_words(figure, each) for figure, each in gained.items()}
    kept = said.get("F.Ra", "had nothing to forget")
    sentences = f"{title} against {name}: it {kept}. It {said['AP']}, having {said['learned']}."
    if len(ours) == 1:
        sentences += " One seed cannot tell this from chance."
    lines = [*textwrap.wrap(sentences, 120), "Seed by seed, + is better:"]
    for figure, each in gained.items():
        between = interval(each)
        told = f"   95 %: {between[0]:+.1f} to {between[1]:+.1f}" if between else ""
        lines.append(f"  {figure:<8} {over(each, '+'):>11}   {judge(each)}{told}")
    return "\n".join(lines)


def _in_words(figure: str, gained: Sequence[float]) -> str:
    """Return a difference and its 95 % interval, such as ``ended 2.0 points higher (AP, 95 %: 1.0 to 3.0)``."""
    verb, better, worse, equal = JUDGED[figure]
    mean, between = statistics.mean(gained), interval(gained)
    size = equal if round(mean, 1) == 0 else f"{abs(mean):.1f} points {better if mean > 0 else worse}"
    beside = [figure] if figure != verb else []
    if between and any(gained):
        if judge(gained) == "unclear":
            ends = [f"{abs(end):.1f} {better if end > 0 else worse}" for end in between]
            beside.append("perhaps by chance")
        else:
            ends = [f"{end:.1f}" for end in sorted(map(abs, between))]
        beside.append(f"95 %: {' to '.join(ends)}")
    return f"{verb} {size}" + f" ({', '.join(beside)})" * bool(beside)


def _forgotten(matrices: Sequence[ResultMatrix], task: str) -> str:
    # nothing was learned before the first task where none was known
    if not matrices[0].known and task == matrices[0].tasks[0]:
        return ""
    return over([matrix.fra(task) for matrix in matrices])


def _row(title: str, after: str, matrices: Sequence[ResultMatrix], row: str, forgotten: str = "") -> list[str]:
    scores = [
        "–" if any(task in matrix.lacking(row) for matrix in matrices)
        else over([matrix.score(task, row) for matrix in matrices])
        for task in matrices[0].columns
    ]  # fmt: skip
    return [title, after, *scores, forgotten, "–" if "–" in scores else over([matrix.ap(row) for matrix in matrices])]
