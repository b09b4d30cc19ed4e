"""Versions whose insides are not known are refused."""

import pytest

from parallel import megatron


@pytest.mark.parametrize("installed", ["0.16.0", "0.16.1", "0.16.1rc2", "0.17.9"])
def test_known_versions_pass(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr(megatron, "version", lambda package: installed)
    megatron.refuse_other_version("megatron-core", ("0.16", "0.18"))


@pytest.mark.parametrize("installed", ["0.15.9", "0.9", "0.18.0", "0.18rc1", "1.0"])
def test_other_versions_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, installed: str
) -> None:
    monkeypatch.setattr(megatron, "version", lambda package: installed)
    with pytest.raises(RuntimeError) as refusal:
        megatron.refuse_other_version("megatron-core", ("0.16", "0.18"))
    assert str(refusal.value) == (
        f"megatron-core {installed} is installed, but parallel/ relies on the insides of 0.16 up "
        "to (not including) 0.18: install 'megatron-core>=0.16,<0.18', as constraints.txt does"
    )


def test_nothing_is_imported_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "version", lambda package: "0.99")
    with pytest.raises(RuntimeError, match=r"megatron-core 0\.99 is installed"):
        megatron.core("parallel_state")
