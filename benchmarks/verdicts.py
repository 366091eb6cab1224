"""How often `trust` is wrong about a q whose errors are known: false *use* and false refusals on constructed cases.

    python benchmarks/verdicts.py                  # the half on which thresholds were chosen
    python benchmarks/verdicts.py --half held      # the half that was held back; or --half both
    python benchmarks/verdicts.py --only spike     # cases whose name contains a word

A case is a posterior with moments in closed form or by quadrature, and a q. A quantity deserves *use* if q's error is below
the limit of `trust`; errors within 15 % of a limit are not scored. A correction whose corrected moments are outside the limit
is a false correction. A quantity that deserves *use* and gets *do not use* is a false refusal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from verdict_cases import Case, all_cases, deserved, is_held_back

from inference import Decision, Verdict, trust
from inference.diagnostics.judgement import MAX_ELBO_GAP, MAX_MEAN_ERROR, MAX_SD_ERROR

QUANTITIES = ("means", "sds", "tails", "evidence")


@dataclass(frozen=True)
class Score:
    """The verdict on one case, with the mistakes in it."""

    name: str
    seconds: float
    decided: dict[str, Decision]
    right: dict[str, bool | None]
    false_use: tuple[str, ...]
    false_correction: tuple[str, ...]
    false_refusal: tuple[str, ...]
    verdict: Verdict

    @property
    def line(self) -> str:
        """The case in one line of text."""
        letters = {Decision.USE: "U", Decision.CORRECT: "C", Decision.REFUSE: "r", True: "u", False: "-", None: "?"}
        got, due = ("".join(letters[v[q]] for q in QUANTITIES) for v in (self.decided, self.right))
        mistakes = [f"false use: {q}" for q in self.false_use] + [f"false correction: {q}" for q in self.false_correction]
        mistakes += [f"refused: {q}" for q in self.false_refusal]
        return f"{self.name:46} {got} deserves {due}  {self.seconds:5.1f} s  {'; '.join(mistakes)}"


def scored(case: Case, seed: int) -> Score:
    """Judges one case."""
    done, x = case.make()
    right = deserved(case, done, x)
    begin = time.perf_counter()
    verdict = trust(done, x, seed=seed)
    seconds = time.perf_counter() - begin
    decided = {q: verdict[q] for q in QUANTITIES}
    corrections = _corrections(case, verdict)
    return Score(
        case.name,
        seconds,
        decided,
        right,
        tuple(q for q in QUANTITIES if decided[q] is Decision.USE and right[q] is False),
        tuple(q for q in QUANTITIES if decided[q] is Decision.CORRECT and not corrections[q]),
        tuple(q for q in QUANTITIES if decided[q] is Decision.REFUSE and right[q] is True),
        verdict,
    )


def _corrections(case: Case, verdict: Verdict) -> dict[str, bool]:
    """Whether the corrected moments are right."""
    mean, sd = verdict.weighted.corrected()
    truth = case.truth
    sds = bool(((sd / truth.sd - 1).abs().max() < MAX_SD_ERROR).item())
    evidence = verdict.weighted.log_evidence.value if verdict.weighted.proper else float("nan")
    return {
        "means": bool(((mean - truth.mean).abs() / truth.sd).max() < MAX_MEAN_ERROR),
        "sds": sds,
        "tails": sds,
        "evidence": abs(evidence - truth.log_evidence) < 2 * MAX_ELBO_GAP,
    }


def main() -> None:
    """Prints one line for each case, and the totals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--half", choices=("tuning", "held", "both"), default="tuning")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--explain", action="store_true", help="print the findings of each case too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scores: list[Any] = []
    for name, case in all_cases().items():
        held = is_held_back(name)
        if options.only not in name or (options.half != "both" and held != (options.half == "held")):
            continue
        scores.append(scored(case, options.seed))
        print(scores[-1].line, flush=True)
        if options.explain:
            for finding in scores[-1].verdict.findings:
                print(f"      {finding.quantity}: {finding.decision.value}; {finding.evidence}; {finding.next_step}")
    due = sum(value is True for s in scores for value in s.right.values())
    refused, used = (sum(len(getattr(s, field)) for s in scores) for field in ("false_refusal", "false_use"))
    corrected = sum(len(s.false_correction) for s in scores)
    seconds = statistics.median(s.seconds for s in scores)
    print(
        f"{len(scores)} cases: {used} false uses, {corrected} false corrections, {refused} of {due} right quantities refused"
    )
    print(f"median {seconds:.1f} s, largest {max(s.seconds for s in scores):.1f} s")


if __name__ == "__main__":
    main()
