import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sq.bench import company
from sq.core.paths import PACKAGE

CPU = {"rtn": 0.01, "gptq": 0.1, "sensiquant": 0.2, "sensiquant_plus": 0.5, "obq": 4.0}


def runs(slower=1.2, codes="c", load=0.5):
    """Return two repeats of every run; seconds are twice the CPU seconds, and beside loops both grow."""
    made = []
    kinds = [(name, "default") for name in CPU] + [(name, 1) for name in company.ONE_THREAD]
    for repeat in range(2):
        for beside, factor, more in ((company.ALONE, 1.0, 1.0), (company.BUSY, slower, 2.0)):
            for name, threads in kinds:
                cpu = CPU[name] * factor
                made.append(
                    {
                        **{
                            "repeat": repeat,
                            "beside": beside,
                            "code": "this",
                            "quantizer": name,
                            "threads": threads,
                        },
                        **{"load": load, "solve_seconds": 2 * cpu, "solve_cpu_seconds": cpu},
                        **{"quantize_seconds": 2 * CPU[name] * more, "quantize_cpu_seconds": cpu},
                        **{
                            "run_seconds": 9.0,
                            "run_cpu_seconds": 4.0,
                            "codes": name + codes,
                            "relative_error": 0.1,
                        },
                        **{
                            "seconds": {"load": 0.01, "quantize": cpu},
                            "cpu_seconds": {"load": 0.01, "quantize": cpu},
                        },
                    }
                )
    return made


def report(made):
    return company.report(
        {"repeats": 2, "provenance": {"processor": "p", "threads": 2}, "runs": made}
    )


def test_report_says_what_holds():
    text, holds = report(runs())
    assert holds
    assert "FAILS" not in text
    assert (
        "| sensiquant | beside loops | 0.240 | 1.20 | 0.480 | 0.800 | 2.00 | 20.0 | 20.0 |" in text
    )
    assert "| obq | alone | quantize | 4.000 | 4.000 | 4.000 | 4.000 |" in text
    assert "| load |" not in text  # too short to say anything
    assert "code before" not in text


@pytest.mark.parametrize(
    ("change", "failing"),
    [({"solve_cpu_seconds": 0.5}, "1/9.6"), ({"codes": "other"}, "codes are the same")],
)
def test_report_says_what_fails(change, failing):
    made = runs()
    for run in made:
        if run["quantizer"] == "sensiquant" and run["beside"] == company.BUSY:
            run |= change
    text, holds = report(made)
    assert not holds
    assert [line for line in text.splitlines() if line.startswith("- FAILS") and failing in line]


def test_another_code_is_compared():
    before = [run | {"code": "before", "quantize_seconds": 7.0, "codes": "older"} for run in runs()]
    text, holds = report(runs() + [run for run in before if run["threads"] == "default"])
    assert holds  # what the other code finds is its own affair
    assert "| rtn | alone | 7.000 | 0.020 | 0.010 | 0.010 | 9.000 | 9.000 |" in text


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_loops_are_busy_and_end():
    before = set(children())
    with company.busy(2):
        started = set(children()) - before
        assert len(started) == 2
    assert not started & set(children())


def children():
    own = str(os.getpid())
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if about[1] == own:
            yield folder.name


def test_a_run_is_measured_in_a_process_of_its_own():
    with company.serving(PACKAGE.parent) as ask:
        told = ask(
            ["quantizer=rtn", "threads=2", "sensitivity=weight_mse", "calibration.images=16"]
        )
    assert (
        told["seconds"].keys()
        == told["cpu_seconds"].keys()
        >= {"statistics", "quantize", "correct"}
    )
    assert 0 < told["solve_cpu_seconds"] <= told["quantize_cpu_seconds"] <= told["run_cpu_seconds"]
    assert told["run_seconds"] == pytest.approx(sum(told["seconds"].values()))


def test_mistakes_are_refused(capsys):
    for words, said in (
        (["--repeats", "0"], "1 or more"),
        (["--before", "/nowhere"], "no checkout of sq"),
    ):
        with pytest.raises(SystemExit):
            company.main(words)
        assert said in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from sq.bench import company\ntry: company.main(['--help'])\nexcept SystemExit: pass\n"
    told = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.endswith("False\n")


def test_modules_are_here_by_their_names_of_today():
    for name, earlier in company.EARLIER.items():
        assert company._module(name).__name__ == name
        assert importlib.util.find_spec(earlier) is None
