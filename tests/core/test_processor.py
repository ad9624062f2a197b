"""What records say of the processor, from what systems say of it."""

import platform

import pytest

from sq.core import processor

ZEN3 = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu sse4_1 avx avx2 fma\n"
ICE_LAKE = "processor\t: 0\nmodel name\t: Intel Xeon\nflags\t\t: avx2 avx512f avx512_vnni\n"
ALDER_LAKE = "model name\t: Intel Core i7\nflags\t\t: avx2 avx_vnni\n"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp\n"


@pytest.fixture(autouse=True)
def fresh():
    """Answers are cached for a process."""
    yield
    processor.name.cache_clear()
    processor.flags.cache_clear()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    def of(cpuinfo, kind="x86_64", system="Linux"):
        processor.name.cache_clear()
        processor.flags.cache_clear()
        if cpuinfo is not None:
            (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(platform, "machine", lambda: kind)
        monkeypatch.setattr(platform, "system", lambda: system)

    return of


@pytest.mark.parametrize(
    ("cpuinfo", "kind", "vnni", "saturates"),
    [
        (ZEN3, "x86_64", False, True),
        (ICE_LAKE, "x86_64", True, False),
        (ALDER_LAKE, "x86_64", True, False),
        (GRAVITON, "aarch64", False, False),
    ],
    ids=["zen 3", "ice lake", "alder lake", "graviton"],
)
def test_sums_of_bytes_saturate_on_x86_without_vnni(machine, cpuinfo, kind, vnni, saturates):
    machine(cpuinfo, kind)
    assert processor.vnni() is vnni
    assert processor.saturates() is saturates


def test_name_and_flags_are_those_of_the_system(machine):
    machine(ZEN3)
    assert processor.name() == "AMD EPYC 7763"
    assert processor.flags() == {"fpu", "sse4_1", "avx", "avx2", "fma"}


def test_macs_are_asked_by_sysctl(machine, monkeypatch):
    said = {
        "machdep.cpu.brand_string": "Intel(R) Core(TM) i9",
        "machdep.cpu.features": "SSE4.1 AVX1.0",
        "machdep.cpu.leaf7_features": "AVX2 AVX512F",
    }
    machine(None, system="Darwin")
    monkeypatch.setattr(processor, "_sysctl", lambda key: said.get(key, ""))
    assert processor.name() == "Intel(R) Core(TM) i9"
    assert processor.vnni() is False
    machine(None, kind="arm64", system="Darwin")
    assert processor.saturates() is False


def test_system_that_says_nothing_leaves_it_unknown(machine, monkeypatch):
    machine(None, kind="AMD64", system="Windows")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False, raising=False)
    assert processor.name() == "unknown"
    assert (processor.vnni(), processor.saturates()) == (None, None)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: True, raising=False)
    assert (processor.vnni(), processor.saturates()) == (True, False)


def test_instruction_set_is_what_pytorch_uses():
    assert processor.instruction_set().isupper()
