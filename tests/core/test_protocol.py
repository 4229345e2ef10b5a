import pytest

from swiftmask.core.protocol import SamplingOptions


def test_options_go_over_defaults() -> None:
    defaults = SamplingOptions(guidance=2.0, temperature=0.9, choice_temperature=0.5)
    chosen = SamplingOptions(temperature=0.6).over(defaults)
    asked = {"guidance": 2.0, "temperature": 0.6, "choice_temperature": 0.5}
    assert chosen.of_codes() == {**asked, "schedule_power": 1.0}
    assert SamplingOptions(schedule_power=2.0).over(chosen).of_codes() == {**asked, "schedule_power": 2.0}


def test_a_schedule_of_codes_needs_all_of_its_knobs() -> None:
    with pytest.raises(ValueError, match=r"must be chosen, got .*choice_temperature=None"):
        SamplingOptions(guidance=2.0, temperature=0.9).of_codes()
