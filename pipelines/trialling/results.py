"""What the trials of a protocol came to: means with intervals, paired differences; as tables, CSV, LaTeX and a curve."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.bootstrap import Floats
from featurecache.files import write_atomic
from featurecache.fonts import quiet_fonts
from featurecache.metrics import difference_limits, limits_of, primary
from featurecache.reports import Table, format_interval
from featurecache.runs import RECORD
from pipelines.training.selection import as_csv
from pipelines.trialling.pairing import (
    Outcome,
    Sample,
    difference,
    drawn,
    excludes_zero,
    summary,
    with_derived,
)

if TYPE_CHECKING:
    from pipelines.protocols import Plan, Trial
    from pipelines.trialling.trialling import Work

Line = dict[str, Any]
NUMBERS = ("trials", "mean", "deviation", "trials_low", "trials_high", "low", "high")


def results_of(protocol: str, works: Sequence[Work]) -> dict[str, Any]:
    """Return "metric", "results", "differences" and "trials", each a list of lines, of finished works."""
    metric = primary(works[0].plan.trials[0].fold.train.store.header.task)
    results: list[Line] = []
    differences: list[Line] = []
    for title in dict.fromkeys(work.title for work in works):
        mine = [work for work in works if work.title == title]
        for labels, trials in grouped(mine[0].plan):
            for test, (values, sample) in _values(mine, trials).items():
                place = {"protocol": protocol, "store": title, **labels, "test": test}
                results += [
                    {**place, "head": work.head, **summary(values[:, :, n], limits_of(metric), sample)}
                    for n, work in enumerate(mine)
                ]
                differences += [
                    {**place, "head": mine[b].head, "against": mine[a].head,
                     **difference(values[:, :, b], values[:, :, a], difference_limits(metric), sample)}
                    for a in range(len(mine)) for b in range(a + 1, len(mine))
                ]  # fmt: skip
    lines = [
        _trial_line(protocol, work, trial, test) for work in works for trial in work.plan.trials for test in trial.tests
    ]
    return {"metric": metric, "results": results, "differences": differences, "trials": lines}


def grouped(plan: Plan) -> list[tuple[Line, list[Trial]]]:
    """Return the labels that are told with the trials that are averaged."""
    groups: dict[str, tuple[Line, list[Trial]]] = {}
    for trial in plan.trials:
        labels = {name: value for name, value in trial.labels.items() if name not in plan.over}
        groups.setdefault(json.dumps(labels), (labels, []))[1].append(trial)
    return list(groups.values())


def _values(works: Sequence[Work], trials: Sequence[Trial]) -> dict[str, tuple[Floats, Sample]]:
    """Return test -> (1 + draws, T, H) values of its heads and what was drawn from, with those that the plan derives."""
    found: dict[str, Floats] = {}
    samples: dict[str, Sample] = {}
    for test in trials[0].tests:
        outcomes = [
            [Outcome.of(work.folder / trial.name / test, trial.tests[test]) for work in works] for trial in trials
        ]
        found[test], samples[test] = drawn(outcomes), Sample.of(outcomes)
    derived = Sample(min(sample.units for sample in samples.values()))
    whole = with_derived(found, works[0].plan.derived)
    return {test: (values, samples.get(test, derived)) for test, values in whole.items()}


def _trial_line(protocol: str, work: Work, trial: Trial, test: str) -> Line:
    record = json.loads((work.folder / trial.name / RECORD).read_text())
    metrics = {name: v["value"] for name, v in record["metrics"][test].items() if isinstance(v, dict)}
    setting = {f"setting_{name}": value for name, value in record["setting"].items()}
    return {
        "protocol": protocol, "store": work.title, "head": work.head, **trial.labels, "test": test, **metrics, **setting,
        "best_epoch": record["best_epoch"], "still_improving": record.get("still_improving", False), "rows_train": record["rows"]["train"], "rows_test": record["rows"][test],
    }  # fmt: skip


def tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the results, and what each head is above the first."""
    lines, metric = record["results"], record["metric"]
    labels = [name for name in lines[0] if name not in ("protocol", "head", *NUMBERS)]
    several = any(line["trials"] > 1 for line in lines)
    columns = (*labels, "head", metric, "95 % over rows", *(("deviation", "95 % over trials") if several else ()))
    rows = [(*(_plain(line.get(name)) for name in labels), *_shown(line, several)) for line in lines]
    found = [Table(record["protocol"], columns, rows, [_note(record, several)])]
    first = record["heads"][0]
    against = [line for line in record["differences"] if line["against"] == first]
    if against:
        rows = [
            (*(_plain(line.get(name)) for name in labels), line["head"], f"{line['difference']:+.4f}",
             format_interval(line["low"], line["high"], "+.4f"), "" if excludes_zero(line) else "includes 0")
            for line in against
        ]  # fmt: skip
        title = f"{metric} above {first} (paired bootstrap, the same draws for both)"
        found.append(Table(title, (*labels, "head", "difference", "95 %", ""), rows))
    return found


def _note(record: Mapping[str, Any], several: bool) -> str:
    tested = sorted({line["rows_test"] for line in record["trials"]})
    counts = " to ".join(f"{count:,}" for count in dict.fromkeys((tested[0], tested[-1])))
    rows = f"{counts} test rows, drawn by groups where there are groups"
    return f"means over {record['results'][0]['trials']} trials; {rows}" if several else rows


def _shown(line: Line, several: bool) -> tuple[str, ...]:
    words = (line["head"], f"{line['mean']:.4f}", format_interval(line["low"], line["high"]))
    if not several:
        return words
    if line["deviation"] is None:
        return (*words, "", "")
    return (*words, f"{line['deviation']:.4f}", format_interval(line["trials_low"], line["trials_high"]))


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def write_results(folder: Path, record: Mapping[str, Any], curve: str) -> list[str]:
    """Write every table, and a plot where the protocol has a curve; return the names of the files."""
    files: dict[str, bytes] = {f"{name}.csv": as_csv(record[name]) for name in ("results", "differences", "trials")}
    files["results.tex"] = _latex(record).encode()
    if curve:
        files |= {f"curve.{kind}": _curve(record, curve, kind) for kind in ("png", "svg")}
    for name, content in files.items():
        write_atomic(folder / name, content)
    return list(files)


def _latex(record: Mapping[str, Any]) -> str:
    """Return one line a head and one column a place: percent, with the deviation over trials or the interval over rows."""
    lines = record["results"]
    labels = [name for name in lines[0] if name not in ("protocol", "head", *NUMBERS)]
    places = list(dict.fromkeys(tuple(_plain(line.get(name)) for name in labels) for line in lines))
    best = {p: max(line["mean"] for line in lines if _place(line, labels) == p) for p in places}
    rows = []
    for head in record["heads"]:
        cells = {_place(line, labels): line for line in lines if line["head"] == head}
        rows.append(" & ".join([_escaped(head), *(_cell(cells[p], best[p]) for p in places)]) + r" \\")
    heads = [" & ".join(["", *(_escaped(p[n]) for p in places)]) + r" \\" for n in range(len(labels))]
    body = ["\\toprule", *heads, "\\midrule", *rows, "\\bottomrule"]
    said = f"% {record['protocol']}: {record['metric']} in percent\n"
    return said + "\n".join([f"\\begin{{tabular}}{{l{'c' * len(places)}}}", *body, "\\end{tabular}", ""])


def _place(line: Line, labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(_plain(line.get(name)) for name in labels)


def _cell(line: Line, best: float) -> str:
    value = f"{100 * line['mean']:.1f}"
    value = f"\\mathbf{{{value}}}" if line["mean"] == best else value
    if line["deviation"] is not None:
        return f"${value} \\pm {100 * line['deviation']:.1f}$"
    low, high = (None if line[end] is None else 100 * line[end] for end in ("low", "high"))
    return f"${value}\\;{format_interval(low, high, '.1f')}$"


LETTERS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
"""Letters that LaTeX has words for; those of its own syntax have a backslash before them."""


def _escaped(text: str) -> str:
    return "".join(LETTERS.get(letter) or (f"\\{letter}" if letter in "_%&#${}" else letter) for letter in text)


def _curve(record: Mapping[str, Any], axis: str, kind: str) -> bytes:
    """Return a picture: one panel a store and test, one line a head, a band of the deviation over trials."""
    with quiet_fonts():
        import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in the name of a store is a letter
        return _drawn_curve(record, axis, kind)


def _drawn_curve(record: Mapping[str, Any], axis: str, kind: str) -> bytes:
    with quiet_fonts():
        from matplotlib.figure import Figure

    lines = record["results"]
    panels = list(dict.fromkeys((line["store"], line["test"]) for line in lines))
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (store, test) in zip(axes, panels, strict=True):
        for head in record["heads"]:
            mine = [one for one in lines if (one["store"], one["test"], one["head"]) == (store, test, head)]
            x, y = [one[axis] for one in mine], [100 * one["mean"] for one in mine]
            spread = [100 * (one["deviation"] or 0.0) for one in mine]
            (drawn_line,) = panel.plot(x, y, marker="o", label=head)
            below, above = ([v + sign * s for v, s in zip(y, spread, strict=True)] for sign in (-1, 1))
            panel.fill_between(x, below, above, color=drawn_line.get_color(), alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(x, [str(value) for value in x])
        panel.set(xlabel=axis, ylabel=f"{record['metric']} (%)", title=f"{store}, {test}")
        panel.grid(alpha=0.3)
        panel.legend()
    buffer = io.BytesIO()
    with quiet_fonts(letters_as_text=False):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
