"""The policy: starts as its base, owns only what is trained, survives a round trip, merges."""

import json

import pytest
import torch
from torch import Tensor

from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.speed_rl import TuningConfig, make_policy, merged, read_policy, write_policy
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.methods.speed_rl.rollouts import as_planned
from swiftmask.models.maskgit import MaskGIT
from swiftmask.training.average import Average

METHODS = ["lora", "full"]


def features(model) -> Tensor:
    with torch.no_grad():
        return model.features(model.blank(3), model.encode([0, 1, 2]))


def move(policy) -> None:
    """As training would."""
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in trained_parameters(policy).values():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_its_base_and_moves_alone(base, make_tuning, method):
    policy = make_policy(base, make_tuning(method))
    before = features(base)
    assert torch.equal(features(policy), before)
    move(policy)
    assert (features(policy) - before).abs().max() > 0.1
    assert torch.equal(features(base), before)
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_everything_frozen_is_the_bases_memory(base, make_tuning, method):
    policy = make_policy(base, make_tuning(method))
    assert isinstance(policy, MaskGIT)
    bases = {p.data_ptr() for p in base.parameters()}
    copied = Average(policy, 0.9).module
    assert isinstance(copied, MaskGIT)
    for model in (policy, copied):
        own = trained_parameters(model)
        frozen = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
        assert frozen <= bases
        assert not {p.data_ptr() for p in own.values()} & bases
    assert set(trained_parameters(copied)) == set(trained_parameters(policy))
    mine, its = ({p.data_ptr() for p in trained_parameters(m).values()} for m in (policy, copied))
    assert not mine & its


def test_what_is_trained_is_what_was_targeted(base, make_tuning):
    full = trained_parameters(make_policy(base, make_tuning("full")))
    assert set(full) == {name for name, _ in base.named_parameters() if name.startswith("transformer.")}
    adapters = trained_parameters(make_policy(base, make_tuning("lora")))
    assert len(adapters) == 2 * 2 * 3  # two factors, two blocks, three layers
    assert all("lora_A" in name or "lora_B" in name for name in adapters)


def test_adapters_are_drawn_from_their_seed_alone(base, make_tuning):
    torch.manual_seed(5)
    first = trained_parameters(make_policy(base, make_tuning("lora")))
    after_first = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after_first, torch.rand(1))
    second = trained_parameters(make_policy(base, make_tuning("lora")))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_a_written_policy_reads_back_and_merges(base, make_tuning, method, tmp_path):
    policy = make_policy(base, make_tuning(method))
    move(policy)
    write_policy(tmp_path, policy, tuning=make_tuning(method), provenance={"seed": 1}, steps=4)
    read = read_policy(tmp_path, base)
    assert torch.equal(features(read), features(policy))
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 4

    whole = merged(policy)
    torch.testing.assert_close(features(whole), features(policy), rtol=1e-4, atol=1e-4)
    assert set(whole.state_dict()) == set(base.state_dict())
    whole.save_pretrained(tmp_path / "whole", provenance={})
    plain = MaskGIT.from_pretrained(tmp_path / "whole")
    schedule = plain.schedule(4, num_masked=16, options=SamplingOptions())
    ours, theirs = (as_planned(model, [1], [3], schedule).tokens_BL for model in (plain, policy))
    assert torch.equal(ours, theirs)


def test_only_sampling_that_was_chosen_is_written(base, make_tuning, tmp_path):
    policy, tuning = make_policy(base, make_tuning("lora")), make_tuning("lora")
    for sampling, written in ((SamplingOptions(), None), (SamplingOptions(temperature=0.6),) * 2):
        write_policy(tmp_path, policy, tuning=tuning, provenance={}, sampling=sampling)
        found = json.loads((tmp_path / "config.json").read_text())["sampling"]
        assert (found and SamplingOptions(**found)) == written


def test_merging_leaves_the_policy_alone(base, make_tuning):
    policy = make_policy(base, make_tuning("lora"))
    move(policy)
    before = features(policy)
    whole = merged(policy)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    assert torch.equal(features(policy), before)


def test_adapters_on_disk_bear_their_layers_names(base, make_tuning, tmp_path):
    from safetensors import safe_open

    write_policy(tmp_path, make_policy(base, make_tuning("lora")), tuning=make_tuning("lora"), provenance={})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    layers = {name.rsplit(".lora_", 1)[0] for name in names}
    assert layers < {name for name, _ in base.named_modules()}
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def test_a_model_that_cannot_score_is_refused(golden_mar, make_tuning):
    message = "mar has no log_prob; speed_rl needs one: use maskgit, meissonic or lumina_dimoo"
    with pytest.raises(ValueError, match=message):
        make_policy(golden_mar, make_tuning("full"))


@pytest.mark.parametrize("method", METHODS)
def test_targets_that_name_nothing_are_refused(base, method):
    with pytest.raises(ValueError, match=r"tuning.targets 'nothing' matches none of the .* of maskgit: "):
        make_policy(base, TuningConfig(method=method, targets="nothing"))


def test_impossible_tunings_are_refused():
    with pytest.raises(ValueError, match="tuning.method must be one of lora, full, got 'prefix'"):
        TuningConfig(method="prefix", targets=".*")
    with pytest.raises(ValueError, match="lora_r must be a whole number between 1 and 65_536, got 0"):
        TuningConfig(targets=".*", lora_r=0)


def test_a_policy_of_another_base_or_a_damaged_one_is_refused(base, golden_maskgit, make_tuning, tmp_path):
    tuning = make_tuning("full")
    write_policy(tmp_path, make_policy(base, tuning), tuning=tuning, provenance={}, base_name="toy")
    with pytest.raises(ValueError, match="was tuned from toy, and this is another model: .*codebook_size"):
        read_policy(tmp_path, golden_maskgit)
    with pytest.raises(FileNotFoundError, match=r"expected the folder of a Speed-RL policy"):
        read_policy(tmp_path / "none", base)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"method": "shortcut"}))
    with pytest.raises(ValueError, match="method must be 'speed_rl', got 'shortcut'"):
        read_policy(tmp_path, base)


def test_weights_that_do_not_fit_are_refused(base, make_tuning, tmp_path):
    tuning = make_tuning("lora")
    write_policy(tmp_path, make_policy(base, tuning), tuning=tuning, provenance={})
    config = json.loads((tmp_path / "config.json").read_text())
    config["tuning"]["lora_r"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tuned from another model than this maskgit: .* against \(2, 32\)"):
        read_policy(tmp_path, base)
