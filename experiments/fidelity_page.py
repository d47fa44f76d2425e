"""The tables of docs/fidelity.md, from the lines of a study alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..search.fidelity import fitting_bins, judge
from ..search.ranking import Interval, bootstrap, kendall
from .fidelity_work import Record

__all__ = ["BEGIN", "END", "tables", "write_page"]

Floats = NDArray[np.float64]
BEGIN, END = "<!-- tables: written by --report, do not edit -->", "<!-- end of tables -->"
CEILING = "another seed (the ceiling)"
ACROSS = "another seed, scored on the scoring split"
ADAPTED = ", adapted"                       # behind the name of a strategy whose candidates trained a little more each
UNIT = "bits/byte"


def write_page(page: Path, study: Path) -> Path:
    """Write the tables between the two marks of `page`, and the study's lines beside it; answers the page.

    Raises ValueError when there is no study or no marks.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not study.is_file() or not begun or not ended:
        what = f"{study} is missing" if not study.is_file() else f"{page} lacks {BEGIN if not begun else END}"
        raise ValueError(f"a report goes from a study into a page with two marks: {what}")
    made = tables(Record(study, write=False))
    page.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}", encoding="utf-8")
    shutil.copyfile(study, page.with_suffix(".jsonl"))
    return page


def tables(record: Record) -> str:
    """All tables in Markdown, as far as the study has come. Raises ValueError before three candidates are trained."""
    numbers = Numbers(record)
    return "\n".join([*_about(record), "", *_spread(numbers), "", *_ranking(numbers), "", *_ahead(numbers), "",
                      *_same_split(numbers), "", *_longer(numbers), *_effects(numbers),
                      *_verdict(numbers), *_failures(record), ""])


class Numbers:
    """The scores of a study as arrays over its candidates, larger taken as better; NaN where a training is missing."""

    def __init__(self, record: Record):
        design = record.last("design")
        if design is None:
            raise ValueError(f"a report needs a study: {record.path} has none")
        self.record, self.candidates = record, design["candidates"]
        self.first, self.second = (self._of("alone", "test", replicate=replicate) for replicate in range(2))
        self.parameters, self.macs = (np.array([c[name] for c in self.candidates], dtype=np.float64)
                                      for name in ("parameters", "macs"))
        self.here, self.across = (self._of("alone", "scoring", replicate=replicate) for replicate in range(2))
        self.bins = fitting_bins(self.parameters.tolist())
        trained = {line["strategy"]: line for line in record.of("supernet") if "failure" not in line}
        self.scores = {name + after: self._of("score", field, strategy=name) for name in trained
                       for field, after in (("scoring", ""), ("adapted", ADAPTED))}
        self.scores = {name: scores for name, scores in self.scores.items() if not np.isnan(scores).any()}
        self.trained = trained
        self.judged = {name: judge(scores, self.first, self.bins) for name, scores in self._all().items()
                       if int((~np.isnan(scores + self.first)).sum()) >= 3}

    def _of(self, kind: str, name: str, **about: Any) -> Floats:
        """Minus the losses of one kind, by candidate."""
        found = np.full(len(self.candidates), np.nan)
        for line in self.record.of(kind):
            if name in line and all(line[key] == value for key, value in about.items()):
                found[line["candidate"]] = -line[name]
        return found

    def _all(self) -> dict[str, Floats]:
        return {**self.scores, CEILING: self.second, ACROSS: self.across, "parameters": self.parameters, "MACs": self.macs}

    @property
    def strategies(self) -> list[str]:
        """Those with all scores, best tau first."""
        return sorted((name for name in self.scores if name in self.judged), key=lambda name: -self.judged[name]["tau"])

    def ahead(self, name: str, proxy: Floats, within: bool) -> Interval:
        """How much more tau a strategy has than a proxy on the same draws of candidates."""
        known = ~np.isnan(self.first)
        bins = np.zeros(len(known)) if self.bins is None or not within else np.array(self.bins)
        return bootstrap(lambda score, other, truth, labels: kendall(score, truth, labels) - kendall(other, truth, labels),
                         self.scores[name][known], proxy[known], self.first[known], bins[known])


def _about(record: Record) -> list[str]:
    design, run, plan = (record.last(kind) or {} for kind in ("design", "run", "plan"))
    s, machine = design["settings"], run["machine"]
    sizes = [c["parameters"] for c in design["candidates"]]
    commands = dict.fromkeys(line["command"] for line in record.of("run"))
    return [f"Written on {run['date']} by", "", *(f"    {command}" for command in commands), "",
            f"on {machine['name']}, {s['workers']} workers of one thread, torch {machine['torch']}, "
            f"{record.seconds_spent() / 60:.1f} minutes in all{_processor(record, s['workers'])}. Seed {s['seed']}.", "",
            f"Data: {design['data']}. Trainings read the first 95 %, inherited weights are scored on the validation half of "
            "the rest, candidates trained alone are measured on the test half.", "",
            f"Space: {int(design['size']):,} genomes. {len(sizes)} candidates of {min(sizes):,} to {max(sizes):,} "
            f"parameters, each trained alone for {plan.get('steps')} steps of {s['batch']} x {s['length']} bytes (peak "
            f"learning rate {s['lr']:g}), {s['repeated']} of them with a second seed. Supernets at a peak rate of "
            f"{s['supernet_lr']:g}, planned for {plan.get('supernet_seconds', 0):.0f} s each.{_adaptation(s)} Brackets "
            "are 95 % percentile bootstrap intervals over the candidates (2,000 resamples)."]


def _processor(record: Record, workers: int) -> str:
    """The time of the processor that the jobs of each worker took, where the study knows it."""
    spent = sum(line.get("cpu_seconds", 0.0) for line in record.lines)
    return f", in which the jobs took {spent / workers / 60:.1f} minutes of the processor per worker" if spent else ""


def _adaptation(settings: dict[str, Any]) -> str:
    steps = settings.get("adapt_steps", 0)
    return f" \"Adapted\": each candidate first trains {steps} steps from what it inherits (peak rate " \
           f"{settings['adapt_lr']:g}), on the training split." if steps else ""


def _spread(numbers: Numbers) -> list[str]:
    known = ~np.isnan(numbers.first)
    both = known & ~np.isnan(numbers.second)
    between = float(np.std(numbers.first[known], ddof=1))
    lines = [f"Standalone test loss over {int(known.sum())} candidates: {-numbers.first[known].mean():.3f} {UNIT} in the "
             f"mean, {-numbers.first[known].max():.3f} to {-numbers.first[known].min():.3f}, standard deviation "
             f"{between:.3f}"]
    if both.sum() > 1:
        noise = float(np.std((numbers.first - numbers.second)[both], ddof=1)) / 2 ** 0.5
        lines[0] += f"; that of one training, from {int(both.sum())} pairs of seeds, {noise:.3f}"
    return [lines[0] + "."]


def _ranking(numbers: Numbers) -> list[str]:
    """One row per score: its rank statistics against the first standalone seed."""
    ks = [regret["k"] for regret in next(iter(numbers.judged.values()))["regret"]]
    head = ["ranked by", "steps", "seconds", "Kendall tau", "of the ceiling", "tau within bins", "of the ceiling", "Spearman",
            *(f"lost by the best {k}, {UNIT}" for k in ks)]
    rows = [[name, *_effort(numbers, name), *_statistics(numbers, name, ks)]
            for name in [*numbers.strategies, CEILING, ACROSS, "parameters", "MACs"] if name in numbers.judged]
    return _table(head, rows)


def _effort(numbers: Numbers, name: str) -> list[str]:
    line = numbers.trained.get(name.removesuffix(ADAPTED))
    return ["", ""] if line is None else [f"{line['steps']:,}", f"{line['train_seconds']:.0f}"]


def _statistics(numbers: Numbers, name: str, ks: Sequence[int]) -> list[str]:
    found, ceiling = numbers.judged[name], numbers.judged.get(CEILING)
    regrets = {regret["k"]: _shown(regret, "value", digits=3) for regret in found["regret"]}
    return [_shown(found, "tau"), _share(found, ceiling), _shown(found["within"], "tau"),
            _share(found["within"], ceiling and ceiling["within"]), _shown(found, "spearman", "spearman_"),
            *(regrets.get(k, "–") for k in ks)]


def _share(found: dict[str, Any] | None, ceiling: dict[str, Any] | None) -> str:
    return f"{found['tau'] / ceiling['tau']:.2f}" if found and ceiling and ceiling["tau"] > 0 else "–"


def _ahead(numbers: Numbers) -> list[str]:
    """How far each strategy is ahead of what is free, and how it ranks where more noise is averaged out."""
    bins = "" if numbers.bins is None else f", {len(set(numbers.bins))} bins of equal parameters"
    head = ["strategy", "tau above parameters", "tau above MACs", f"above parameters, within{bins}", "above MACs, within",
            "mean of the bins' own taus", "tau against the mean of both seeds"]
    return _table(head, [[name, *_leads(numbers, name)] for name in numbers.strategies])


def _leads(numbers: Numbers, name: str) -> list[str]:
    leads = [_interval(numbers.ahead(name, proxy, within)) if numbers.bins is not None or not within else "–"
             for within in (False, True) for proxy in (numbers.parameters, numbers.macs)]
    both = ~np.isnan(numbers.first + numbers.second)
    mean = kendall(numbers.scores[name][both], (numbers.first + numbers.second)[both]) if both.sum() > 2 else np.nan
    return [*leads, _shown(numbers.judged[name]["within"], "mean", "mean_"), "–" if np.isnan(mean) else f"{float(mean):.2f}"]


def _same_split(numbers: Numbers) -> list[str]:
    """The same scores against trainings alone that are measured where inherited weights are scored."""
    scores = {**numbers.scores, CEILING: numbers.across, "parameters": numbers.parameters, "MACs": numbers.macs}
    judged = {name: judge(values, numbers.here, numbers.bins) for name, values in scores.items()
              if int((~np.isnan(values + numbers.here)).sum()) >= 3}
    ceiling = judged.get(CEILING)
    head = ["both on the scoring split, ranked by", "Kendall tau", "of the ceiling", "tau within bins", "of the ceiling"]
    names = [name for name in (*numbers.strategies, CEILING, "parameters", "MACs") if name in judged]
    return _table(head, [[name, _shown(judged[name], "tau"), _share(judged[name], ceiling),
                          _shown(judged[name]["within"], "tau"),
                          _share(judged[name]["within"], ceiling and ceiling["within"])] for name in names])


def _longer(numbers: Numbers) -> list[str]:
    """How the ranking changes with the steps that each candidate trains from what it inherits, where the study asked."""
    asked = list(dict.fromkeys((line["strategy"], line["horizon"]) for line in numbers.record.of("adapted")))
    if not asked:
        return []
    plan, design = (numbers.record.last(kind) or {} for kind in ("plan", "design"))
    alone, near = plan["steps"], design["settings"]["adapt_steps"]
    scores = {(name, steps): numbers._of("adapted", "adapted", strategy=name, horizon=steps) for name, steps in asked}
    for name in dict.fromkeys(name for name, _ in asked):
        scores |= {(name, 0): numbers.scores[name], (name, near): numbers.scores[name + ADAPTED]}
    head = ["strategy", "steps from inherited weights", "of a training alone", "Kendall tau", "of the ceiling",
            "tau within bins", "of the ceiling"]
    ceiling, rows = numbers.judged.get(CEILING), []
    for (name, steps), values in sorted(scores.items()):
        found = judge(values, numbers.first, numbers.bins)
        rows.append([name, str(steps), f"{steps / alone:.0%}", _shown(found, "tau"), _share(found, ceiling),
                     _shown(found["within"], "tau"), _share(found["within"], ceiling and ceiling["within"])])
    return [*_table(head, rows), ""]


MIXERS = ("attention", "gated delta", "Mamba-2", "short convolution", "Hyena")      # as the study's space orders them


def _effects(numbers: Numbers) -> list[str]:
    """What a choice is worth alone and with inherited weights, by least squares over the candidates: losses per choice."""
    decisions = [candidate["genome"].get("decisions") for candidate in numbers.candidates]
    truth = (numbers.first + numbers.second) / 2
    if not all(decisions) or np.isnan(truth).any():
        return []
    chosen = [[made[f"body[{i}].mixer"] for i in range(made["body.times"])] for made in decisions]
    counts = np.array([[1.0, made["recursion"], made["body.times"], made["width"], *(kinds.count(m) for m in range(1, 5))]
                       for made, kinds in zip(decisions, chosen, strict=True)])
    rows = []
    for name, values in {"trained alone, both seeds": truth, **{n: numbers.scores[n] for n in numbers.strategies}}.items():
        found, *_ = np.linalg.lstsq(counts, -values, rcond=None)
        rest = 1 - float(np.var(-values - counts @ found) / np.var(values))
        rows.append([name, *(f"{effect:+.3f}" for effect in found[1:]), f"{rest:.2f}"])
    head = [f"{UNIT} per choice", "run twice", "one more layer", "wider",
            *(f"{mixer} for attention" for mixer in MIXERS[1:]), "variance explained"]
    return [*_table(head, rows), ""]


def _verdict(numbers: Numbers) -> list[str]:
    """The best strategy against the ceiling and the proxies, in words."""
    if not numbers.strategies or CEILING not in numbers.judged:
        return ["The study is not finished: no strategy has all its scores, or no candidate has a second seed."]
    name = numbers.strategies[0]
    said = [f"Best overall: {name}, {_share(numbers.judged[name], numbers.judged[CEILING])} of the ceiling."]
    if numbers.bins is not None:
        best = max(numbers.strategies, key=lambda one: numbers.judged[one]["within"]["tau"])
        within = {one: found["within"]["tau"] for one, found in numbers.judged.items()}
        beaten = [proxy for proxy in ("parameters", "MACs") if within[best] > within[proxy]]
        said.append(f"Best within bins: {best}, {_share(numbers.judged[best]['within'], numbers.judged[CEILING]['within'])} "
                    f"of the ceiling there; above {' and '.join(beaten) or 'neither parameters nor MACs'}.")
    return [" ".join(said)]


def _failures(record: Record) -> list[str]:
    keys = ("kind", "strategy", "candidate", "replicate", "horizon")
    done = {tuple(map(line.get, keys)) for line in record.lines if "failure" not in line}
    failed = [line for line in record.lines if "failure" in line and tuple(map(line.get, keys)) not in done]
    return [] if not failed else ["", "Failed: " + "; ".join(
        f"{line['kind']} {line.get('strategy') or line.get('candidate')}: {line['failure']}" for line in failed)]


def _shown(found: dict[str, Any] | None, name: str, prefix: str = "", digits: int = 2) -> str:
    if found is None:
        return "–"
    return _interval(Interval(found[name], found[f"{prefix}low"], found[f"{prefix}high"]), digits)


def _interval(found: Interval, digits: int = 2) -> str:
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
