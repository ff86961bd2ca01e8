"""Alert rules and dashboard ask for metrics that the services have, with labels that they bear."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import services.audit.meters
import services.inference.meters
import services.ingest.metrics
import shared.metrics

MEASURED = (services.audit.meters, services.inference.meters, services.ingest.metrics, shared.metrics)
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
METRIC = re.compile(r"\b(stepwedge_[a-z_]+)(?:\{([^}]*)\})?")


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of everything that is asked."""
    rules: Any = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        yield rule["alert"], rule["expr"]
    for panel in json.loads((DEPLOY / "grafana" / "stepwedge.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def labels() -> dict[str, set[str]]:
    """Name of every series -> its labels."""
    found: dict[str, set[str]] = {}
    for name, collector in REGISTRY._names_to_collectors.items():
        if name.startswith("stepwedge"):
            found[name] = set(getattr(collector, "_labelnames", ()))
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_what_is_asked_for_exists(where: str, expression: str):
    known = labels()
    for name, selector in METRIC.findall(expression):
        assert name in known, where
        assert set(re.findall(r"(\w+)\s*[=!]~?=?\s*\"", selector)) <= known[name], where
    series = [name for name, _ in METRIC.findall(expression)]
    for group in re.findall(r"by \(([^)]*)\)", expression):
        allowed = {"le", "instance"}.union(*(known[name] for name in series))
        assert {label.strip() for label in group.split(",")} <= allowed, where


def test_every_rule_says_what_is_wrong_and_what_to_do():
    rules: Any = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert {"summary", "action"} <= set(rule["annotations"])
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_every_metric_has_a_unit_in_its_name_and_a_help():
    for module in MEASURED:
        for metric in vars(module).values():
            if hasattr(metric, "_documentation") and metric._type != "info":
                assert metric._documentation.endswith("."), metric._name
                assert metric._unit or metric._name.rpartition("_")[2] in {
                    *("boolean", "records", "answers", "alerts", "entries", "findings"),
                }, metric._name
