"""What is shipped for Prometheus and Grafana asks for figures that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from starlette.testclient import TestClient

from dramatiq_joblog import Alert, JobLog
from dramatiq_joblog.cli.alerts import monitoring
from dramatiq_joblog.web import dashboard

METRIC = re.compile(r"\bjoblog_\w+")
LABEL = re.compile(r"\b(joblog_\w+)\{([^}]*)\}")
SAMPLE = re.compile(r"^(joblog_\w+)(?:\{(.*)\})? ", re.MULTILINE)


@pytest.fixture
def figures(database_url, joblog, job_factory):
    """Return the names of all figures of the page, each with its labels."""
    job_factory(job_type="import", duration=100, queue_time=5)
    job_factory(job_type="import", state="dead")
    job_factory(job_type="import", state="lost", finished_at=None)
    log = JobLog(database_url, alerts=[Alert("dead", "state:dead")], alerts_every=1_000)
    log.core.alerting.round()
    with TestClient(dashboard(log, authorize=lambda request: "all")) as client:
        text = client.get("/metrics").text
    log.close()
    found = {}
    for name, labels in SAMPLE.findall(text):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def expressions(name):
    """Return what a file asks for."""
    text = monitoring(name)
    if name == "grafana.json":
        panels = json.loads(text)["panels"]
        return [target["expr"] for panel in panels for target in panel["targets"]]
    return re.findall(r"^ *expr: (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["grafana.json", "prometheus.yml"])
def test_every_figure_exists(figures, name):
    """Each metric and label that a file names is one of the page's."""
    asked = expressions(name)

    assert len(asked) > 8
    for expression in asked:
        names = METRIC.findall(expression)
        assert names
        assert {*names} <= {*figures}, expression
        for metric, labels in LABEL.findall(expression):
            assert {*re.findall(r"(\w+)[=!]", labels)} <= figures[metric], expression


def test_the_rules_are_read():
    """The rules are YAML of the form that Prometheus reads."""
    yaml = pytest.importorskip("yaml")

    [group] = yaml.safe_load(monitoring("prometheus.yml"))["groups"]
    for rule in group["rules"]:
        assert {*rule} <= {"record", "alert", "expr", "for", "labels", "annotations"}
        assert ("record" in rule) != ("alert" in rule)
        if "alert" in rule:
            assert {*rule["annotations"]} == {"summary", "description"}
            assert rule["labels"]["severity"] in {"warning", "critical"}


def test_the_dashboard_is_read():
    """The dashboard is JSON; its panels have ids of their own and do not lie on each other."""
    board = json.loads(monitoring("grafana.json"))

    places = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & cells
        places |= cells
        assert at["x"] + at["w"] <= 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.fixture
def promtool(tmp_path):
    """Return a function that has Prometheus' own tool check a text, and returns what it says."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: apt install prometheus")

    def check(what, text):
        path = tmp_path / "checked"
        path.write_text(text)
        # It reads figures from its input alone, and rules from files alone.
        files = [path] if what == "rules" else []
        done = subprocess.run(
            [program, "check", what, *files],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert 0 == done.returncode, said
        return said

    return check


def test_prometheus_reads_the_rules(promtool):
    """Prometheus' own tool finds nothing wrong with the rules."""
    assert "SUCCESS" in promtool("rules", monitoring("prometheus.yml"))


def test_prometheus_reads_the_figures(promtool, joblog, job_factory):
    """Prometheus' own tool finds nothing wrong with the names and the help of the figures."""
    job_factory(job_type="import", duration=100, queue_time=5)
    with TestClient(dashboard(joblog, authorize=lambda request: "all")) as client:
        text = client.get("/metrics").text
    promtool("metrics", text)


def test_prometheus_reads_the_dashboard(promtool):
    """Prometheus' own tool parses each expression of the dashboard, as that of a rule."""
    asked = [
        expression.replace("$__rate_interval", "5m").replace("$__range", "1h")
        for expression in expressions("grafana.json")
    ]
    rules = [{"record": f"joblog:{n}", "expr": each} for n, each in enumerate(asked)]
    # JSON is YAML.
    promtool("rules", json.dumps({"groups": [{"name": "board", "rules": rules}]}))
