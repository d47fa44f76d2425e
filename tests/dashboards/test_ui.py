"""The printed link opens MLflow at the Pareto front, with the front drawn."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from bodyplan.dashboards.ui import prepare, serve, server
from bodyplan.errors import BodyplanError
from bodyplan.search.results import Results
from bodyplan.search.saved_views import front_link
from bodyplan.search.tracking import default_uri
from example_sweeps import write_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update", "--window-size=1600,3000"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")


def page_of(address, profile, milliseconds=20_000):
    """The document a browser has after running the page's scripts for a while."""
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", f"--virtual-time-budget={milliseconds}", "--dump-dom",
               address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout


def test_a_directory_without_a_journal_is_refused(tmp_path):
    with pytest.raises(BodyplanError, match="journal.sqlite"):
        serve(tmp_path)


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BodyplanError, match=f"port {port} cannot be served"), server("sqlite://", port):
            pass


@pytest.mark.slow
def test_a_sweep_that_was_moved_gets_a_new_store(tmp_path):
    prepare(write_sweep(tmp_path / "before", trials=3, finished=False, failing=100))
    (tmp_path / "before").rename(tmp_path / "after")
    prepare(tmp_path / "after")
    assert (tmp_path / "after" / "mlflow.db.moved").exists()
    assert list((tmp_path / "after" / "mlartifacts").rglob("pareto.html"))


@pytest.mark.slow
def test_serving_prints_the_link_and_ends_cleanly_on_an_interrupt(tmp_path):
    sweep = write_sweep(tmp_path / "served", trials=3, finished=False, failing=100)
    code = f"from bodyplan.dashboards.ui import serve; serve({str(sweep)!r}, out=lambda line: print(line, flush=True))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(3)]
    address = lines[1].removeprefix("Pareto front: ").strip()
    port = int(address.split(":")[2].partition("/")[0])
    assert "viewStateShareKey=pareto-front" in address
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.browser
@pytest.mark.slow
@needs_chromium
def test_the_pareto_view_opens_in_a_browser_with_the_front_drawn(tmp_path):
    sweep = write_sweep(tmp_path / "shown", trials=20)
    experiment_id = prepare(sweep)
    with server(default_uri(sweep)) as base:
        page = until(lambda n: page_of(front_link(base, experiment_id), tmp_path / f"profile{n}"),
                     lambda text: "scatterlayer" in text)
    front = Results.read(sweep).front
    assert "Pareto front" in page and "viewing a shared view" in page
    assert "decode_latency vs. loss" in page
    assert "parallel-coordinates" in page.lower() or "Parallel Coordinates" in page
    drawn = page.split("scatterlayer")[1]
    assert drawn.lower().count("rgb(213, 94, 0)") >= len(front)


@pytest.mark.browser
@needs_chromium
def test_the_report_opens_from_disk_with_its_figures_drawn(tmp_path):
    from bodyplan.dashboards.report import write_report

    sweep = write_sweep(tmp_path / "sweep", trials=20)
    report = write_report(sweep, tmp_path / "report.html")
    page = until(lambda n: page_of(report.as_uri(), tmp_path / f"profile{n}", 8_000),
                 lambda text: "scatterlayer" in text)
    for drawn in ("pareto", "matrix", "parallel", "hypervolume", "fidelity"):
        assert f'id="{drawn}"' in page
    assert page.count("main-svg") >= 5


def until(look, satisfied, attempts=4):
    """Look again where a loaded machine had not drawn everything in time; answers the last look."""
    for attempt in range(attempts):
        page = look(attempt)
        if satisfied(page):
            break
        time.sleep(1 + attempt)
    return page


def test_the_server_is_started_without_its_job_runner(monkeypatch):
    seen = {}

    def started(command, env, **_):
        seen.update(command=command, env=env)
        raise OSError("enough")

    monkeypatch.setattr("bodyplan.dashboards.ui.subprocess.Popen", started)
    with pytest.raises(OSError, match="enough"), server("sqlite:///x.db"):
        pass
    assert seen["env"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert seen["env"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert seen["command"][-6:-4] == ["--host", "127.0.0.1"] and seen["command"][-2:] == ["--workers", "1"]
    assert set(os.environ) <= set(seen["env"])
