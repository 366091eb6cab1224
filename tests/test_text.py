"""How results print: the numbers are those of the fields, with their errors, on one screen and in a notebook."""

import re
from math import inf, nan

import pytest
import torch
from problems import demo

from guides import Global, Local, MeanField
from inference import Decision, compare, elbo, fit, gaps, iwae, trust
from inference.comparison import Comparison
from inference.programs.text import html_table, number, table, with_error
from models import GaussianMean, LocalGaussian

MAX_LINES, MAX_WIDTH = 30, 400


@pytest.fixture(scope="module")
def fitted():
    model, x = demo(GaussianMean)
    return fit(model, Global(model, MeanField()), x, steps=300, lr=0.05), x


def numbers(text):
    """(value, error) of each number with an error."""
    return [(float(a), float(b)) for a, b in re.findall(r"(-?\d+\.?\d*) ± (\d+\.?\d*)", text)]


def holds(text, value, se):
    """Whether the text has this value with this error, to half a unit of the last digit of the error."""
    return any(abs(v - value) <= max(0.06 * se, 5e-7) and abs(e - se) <= max(0.06 * se, 5e-7) for v, e in numbers(text))


def both(result):
    """The text and the HTML, after checks of their form."""
    text, html = str(result), result._repr_html_()
    assert text == repr(result)
    assert len(text.splitlines()) <= MAX_LINES
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    assert "tensor(" not in text
    assert "tensor(" not in html
    assert html.startswith("<table>")
    assert html.count("<tr>") == html.count("</tr>")
    return text, html


def test_numbers_are_rounded_to_two_digits_of_their_error():
    assert with_error(-12.3456, 0.152) == "-12.35 ± 0.15"
    assert with_error(1234.6, 12.3) == "1235 ± 12"
    assert with_error(0.5, 0.0) == "0.500 ± 0.000"
    assert with_error(nan, 0.1) == "–"
    assert with_error(-inf, 0.1) == "-inf"
    assert number(nan) == "–"
    assert number(0.00123456) == "0.001235"
    assert not holds("1.00 ± 0.15", 1.1, 0.15)


def test_tables_are_aligned_and_escaped():
    assert table([["a", "bb", "c"], ["aaa", "b", "cc"]]).splitlines() == ["a    bb  c", "aaa  b   cc"]
    html = html_table([["<b>", ("x", "green")]], head=("p", "q"))
    assert "&lt;b&gt;" in html
    assert "color: green" in html


def test_an_estimate_prints_its_terms(fitted):
    done, x = fitted
    found = elbo(done.model, done.guide, x, draws=200)
    for text in both(found):
        for name in ("elbo", "reconstruction", "complexity"):
            assert holds(text, float(getattr(found.total, name)), float(getattr(found.total, f"{name}_se")))


def test_an_estimate_of_log_p_prints_its_total():
    model, x = demo(LocalGaussian)
    guide = Local(model, MeanField())
    found = iwae(model, guide, x, draws=200)
    for text in both(found):
        assert holds(text, float(found.value.sum()), float(found.se.square().sum().sqrt()))
        assert holds(text, found.mean, found.mean_se)
        assert f"{float(found.ess.min()):.0f} of 200" in text


def test_a_fit_prints_what_it_did(fitted):
    done, _ = fitted
    last = -done.nelbo[-30:].double()
    for text in both(done):
        assert holds(text, float(last.mean()), float(last.std() / 30**0.5))
        assert "Global(MeanField)" in text
        assert done.stop.reason in text
        assert "300 steps" in text
        assert f"{done.seconds:.1f} s" in text
    assert "converged  no: " in str(done)


def test_the_summary_of_a_fit_has_a_row_for_each_latent(fitted):
    done, x = fitted
    frame = done.summary(x, draws=20_000)
    q = done.guide.q()
    assert torch.allclose(torch.tensor(frame["mean"].to_numpy()), q.mean.detach().double(), atol=0.05)
    assert torch.allclose(torch.tensor(frame["sd"].to_numpy()), q.stddev.detach().double(), rtol=0.05)
    assert ((frame["2.5%"] < frame["50%"]) & (frame["50%"] < frame["97.5%"])).all()
    verdict = trust(done, x, draws=1000)
    coloured = done.summary(verdict=verdict)
    assert list(coloured.index) == list(verdict.weighted.scalars.names)
    assert torch.equal(torch.tensor(coloured["mean"].to_numpy()), verdict.weighted.moments().mean)
    colours = {Decision.USE: "green", Decision.CORRECT: "orange", Decision.REFUSE: "red"}
    assert set(coloured["sds are"]) == {colours[verdict["sds"]]}
    with pytest.raises(ValueError, match="give x, or verdict"):
        done.summary()


def test_a_verdict_prints_four_lines_and_where_it_looked(fitted):
    done, x = fitted
    verdict = trust(done, x, draws=1000)
    text, html = both(verdict)
    lines = text.splitlines()
    assert len(lines) == 5
    for line, finding in zip(lines, verdict.findings, strict=False):
        assert line.split()[0] == finding.quantity
        assert finding.decision.value in line
        assert finding.evidence in line
        assert finding.next_step in line
    assert lines[4] == f"({verdict.searched})"
    assert html.count("<tr>") == 5


def test_a_comparison_prints_the_rows_of_its_frame():
    model, x = demo(GaussianMean)
    found = compare(model, {"mean field": lambda m: Global(m, MeanField())}, x, steps=50, lr=0.05, seeds=2)
    assert isinstance(found, Comparison)
    for text in both(found):
        for row in found.to_frame().to_dict("records"):
            assert row["guide"] in text
            assert row["elbo_se"] == 0 or holds(text, row["elbo"], row["elbo_se"])
            assert number(row["gap"]) in text


def test_gaps_print_their_parts():
    model, x = demo(LocalGaussian)
    guide = Local(model, MeanField())
    found = gaps(fit(model, guide, x, steps=50, lr=0.05).model, guide, x)
    for text in both(found):
        for part in (found.evidence, found.elbo, *found.parts.values()):
            assert part.mean_se == 0 or holds(text, part.mean, part.mean_se)
        assert found.evidence_by in text
