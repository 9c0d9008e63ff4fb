"""The alert rules: their form, that every metric in them exists, and what the less simple ones would say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipelines.serving.answering import ServiceState
from pipelines.serving.metrics import Metrics

CHECKOUT = Path(__file__).resolve().parents[3]
RULES = CHECKOUT / "cluster" / "deploy" / "prometheus" / "nightread.rules.yml"
NAME = re.compile(r"\bnightread_[a-z_]+\b")
DURATION = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")

# All of PromQL that the rules may use beside metrics, numbers and labels.
WORDS = {"time", "absent", "unless", "on", "or", "and", "instance", "results"}
WORDS |= {"increase", "rate", "histogram_quantile", "sum", "by", "le", "status", "route"}
WORDS |= {"max", "max_over_time", "without", "replica"}
ASIDE = re.compile(r'"[^"]*"|\[\d+[smhd]\]')


def rules() -> list[dict]:
    document = yaml.safe_load(RULES.read_text())
    assert set(document) == {"groups"}
    return [rule for group in document["groups"] for rule in group["rules"]]


def written_metrics() -> set[str]:
    """Every name that the code writes into a metrics file, and those that the endpoint tells."""
    night = (CHECKOUT / "pipelines" / "predictions" / "prometheus.py").read_text()
    told = Metrics()
    told.count_request("/predict", 200, 0.1)
    state = ServiceState(True, None, 0, 32, 1, 1, 0, None, None)
    return set(NAME.findall(night)) | set(
        re.findall(r"^(nightread_\w+?)(?:\{| )", told.text(None, state, 0), re.MULTILINE)
    )


def complaints(rule: dict, written: set[str]) -> list[str]:
    """What is wrong with a rule."""
    found = [f"unknown key {key}" for key in set(rule) - {"alert", "expr", "for", "labels", "annotations"}]
    expression = str(rule.get("expr", ""))
    found += [f"nobody writes {name}" for name in set(NAME.findall(expression)) - written]
    words = set(re.findall(r"[A-Za-z_][A-Za-z_0-9]*", ASIDE.sub("", NAME.sub("", expression))))
    found += [f"unknown word {word}" for word in words - WORDS]
    if expression.count("(") != expression.count(")") or not expression:
        found.append("no expression, or one with open parentheses")
    if "for" in rule and not DURATION.fullmatch(rule["for"]):
        found.append(f"no duration {rule['for']}")
    if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
        found.append("no severity")
    texts = rule.get("annotations", {})
    found += [f"no {name}" for name in ("summary", "action") if not texts.get(name)]
    found += [f"unfinished {name}" for name, text in texts.items() if text.count("{{") != text.count("}}")]
    return found


def test_every_rule_is_sound_and_about_metrics_that_are_written() -> None:
    written = written_metrics()
    assert {rule["alert"]: complaints(rule, written) for rule in rules()} == {rule["alert"]: [] for rule in rules()}
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 8


@pytest.mark.parametrize(
    "change",
    [
        {"expr": "nightread_last_sucess_timestamp_seconds > 1"},
        {"expr": "maximum(nightread_last_exit_code)"},
        {"expr": "absent(nightread_last_exit_code"},
        {"for": "ten minutes"},
        {"labels": {"severity": "bad"}},
        {"annotations": {"summary": "{{ $value", "action": "look"}},
        {"fore": "10m"},
    ],
    ids=str,
)
def test_what_is_wrong_is_noticed(change: dict) -> None:
    assert complaints({**rules()[0], **change}, written_metrics()) != []


def test_each_exit_code_that_is_no_success_has_its_alert() -> None:
    told = {int(code) for rule in rules() for code in re.findall(r"exit_code == (\d+)", rule["expr"])}
    assert told == {1, 2, 3, 4, 5, 75, 130, 143}
