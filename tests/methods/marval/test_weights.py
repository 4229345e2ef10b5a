"""Folders of a student: what they hold, round trips, and errors that name what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from swiftmask.methods.marval import make_student, read_student, write_student
from swiftmask.methods.marval.student import as_module


@pytest.fixture
def student(teacher, own):
    """A student some way into its training."""
    student = make_student(teacher, own, timestep=700)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return student


def test_folder(student, own, tmp_path):
    write_student(tmp_path, student, base_name="toy-scenes", provenance={"seed": 3})
    names = ["config.json", "model.safetensors", "provenance.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["method"] == "marval"
    assert content["timestep"] == 700
    expected = {"name": "toy-scenes", "family": "toy", "width": 16, "grid": [4, 4]}
    expected |= {"codebook_size": None, "channels": 3}
    assert content["base_model"] == expected
    assert set(load_file(tmp_path / "model.safetensors")) == set(own)
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"seed": 3}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 1e-3)])
def test_round_trip(student, teacher, own, tmp_path, dtype, tolerance):
    write_student(tmp_path, student, provenance={}, dtype=dtype)
    again = read_student(tmp_path, teacher)
    assert again.timestep == 700
    assert again.own == set(own)
    assert not again.training
    expected = as_module(student.model).state_dict()
    for name, value in as_module(again.model).state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)
    assert as_module(again.model).get_submodule("codec").weight is teacher.codec.weight


def test_a_teacher_in_half_precision_is_still_the_same(student, teacher, tmp_path):
    write_student(tmp_path, student, provenance={})
    again = read_student(tmp_path, teacher.to(torch.bfloat16))
    assert {value.dtype for value in again.parameters()} == {torch.bfloat16}


def test_another_training_of_the_same_architecture_is_refused(student, teacher, tmp_path):
    write_student(tmp_path, student, base_name="toy-scenes", provenance={})
    torch.manual_seed(5)
    other = type(teacher)()
    with pytest.raises(ValueError, match="made from toy-scenes, and this teacher is another model: largest"):
        read_student(tmp_path, other)


def test_weights_of_a_whole_model_are_no_students(student, teacher, tmp_path):
    write_student(tmp_path, student, base_name="toy-scenes", provenance={})
    torch.manual_seed(5)
    other = {name: p.detach().clone() for name, p in as_module(type(teacher)()).named_parameters()}
    save_file(other, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors holds a whole model: it has .*from toy-scenes"):
        read_student(tmp_path, teacher)


def test_a_lost_parameter_is_told(student, teacher, own, tmp_path):
    write_student(tmp_path, student, base_name="toy-scenes", provenance={})
    state = load_file(tmp_path / "model.safetensors")
    del state[next(iter(state))]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"holds {len(own) - 1} parameters, .* says {len(own)}"):
        read_student(tmp_path, teacher)


def test_another_architecture_is_refused(student, teacher, own, tmp_path):
    write_student(tmp_path, student, base_name="toy-scenes", provenance={})
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"base_model": content["base_model"] | {"width": 32}}))
    with pytest.raises(ValueError, match="another model: width 32 against 16; give the one it was made from"):
        read_student(tmp_path, teacher)
    path.write_text(json.dumps(content))
    narrower = type(teacher)()
    narrower.head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.SiLU(), torch.nn.Linear(8, 6))
    with pytest.raises(ValueError, match=r"head\.0\.weight \(24, 16\) against \(8, 16\)"):
        read_student(tmp_path, narrower)
    narrower.head = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"no parameter head\.0\.weight"):
        read_student(tmp_path, narrower)


def test_damaged_and_missing_files(student, teacher, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no .*config\.json: expected the folder of a MARVAL student"
    ):
        read_student(tmp_path, teacher)
    write_student(tmp_path, student, provenance={})
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        read_student(tmp_path, teacher)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        read_student(tmp_path, teacher)


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "shortcut"}', '{"method": "marval"}'])
def test_bad_config(content, teacher, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json( is damaged|: method must be|: timestep is missing)"):
        read_student(tmp_path, teacher)
