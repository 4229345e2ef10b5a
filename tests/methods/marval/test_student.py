"""The student: its teacher's guess in one call, a masked generator, and whose parameters it trains."""

import copy
from dataclasses import replace

import pytest
import torch

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import MaskedGenerator, SamplingOptions
from swiftmask.core.rng import ReplayNoise, SeededNoise
from swiftmask.core.types import Step, Trajectory
from swiftmask.methods.marval.student import (
    Student,
    as_module,
    contexts_at,
    make_student,
    nearest_timestep,
)

STEP = Step(index=0, num_masked_before=16, num_masked_after=12)


def generate(student: MaskedGenerator, labels: list[int], seeds: list[int], num_steps: int = 5) -> Trajectory:
    schedule = student.schedule(num_steps, num_masked=16, options=SamplingOptions())
    canvas, noise = student.blank(len(labels)), SeededNoise(seeds, 16, student.device)
    return decode(
        student,
        prepare_condition(student, student.encode(labels), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=FullFeatures(student),
        unmask=student.unmask_rule(canvas, noise),
    )


def test_the_timestep_of_mars_schedule(teacher, own):
    assert nearest_timestep(teacher.signal_T) == 755
    assert make_student(teacher, own).timestep == 755
    assert make_student(teacher, own, timestep=500).timestep == 500
    with pytest.raises(ValueError, match="timestep must be between 0 and 999, got 1000"):
        make_student(teacher, own, timestep=1000)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_fresh_student_is_the_teachers_guess_at_its_timestep(teacher, own, temperature):
    student = make_student(teacher, own)
    features_GBTD = teacher.features(teacher.blank(2), teacher.encode([0, 2]))
    positions_BM = torch.tensor([[3, 0, 9], [15, 4, 1]])
    normal_BLC = torch.randn(2, 16, 3)
    distribution = student.tokens(features_GBTD, positions_BM, 1.0)
    tokens_BMC, log_prob = distribution.sample(
        ReplayNoise([normal_BLC]), replace(STEP, temperature=temperature)
    )
    alpha, sigma = 0.13776357927**0.5, (1 - 0.13776357927) ** 0.5
    for image in range(2):
        for column in range(3):
            position = positions_BM[image, column]
            noisy_1C = sigma * temperature * normal_BLC[image, position][None]
            eps_1C = teacher.denoise(noisy_1C, torch.tensor([755]), features_GBTD[0, image, position][None])
            expected_1C = (noisy_1C - sigma * eps_1C) / alpha
            torch.testing.assert_close(tokens_BMC[image, column][None], expected_1C)
    assert log_prob is None
    assert distribution.log_prob(tokens_BMC, 1.0) is None


def test_decodes_every_token_in_one_head_call_a_step(teacher, own, monkeypatch):
    student = make_student(teacher, own)
    rows: list[int] = []
    answer = type(student.model).denoise
    monkeypatch.setattr(
        type(student.model), "denoise", lambda self, x, t, z: rows.append(len(x)) or answer(self, x, t, z)
    )
    with torch.no_grad():
        trajectory = generate(student, [0, 1], [3, 4])
    assert not trajectory.decided_at_BL.lt(0).any()
    assert rows == [2 * n for n in trajectory.decided_at_BL[0].bincount().tolist()]


def test_a_image_depends_on_its_seed_and_not_on_its_batch(teacher, own):
    student = make_student(teacher, own)
    with torch.no_grad():
        together = generate(student, [0, 1, 2], [5, 6, 7]).tokens_BL
        alone = generate(student, [1], [6]).tokens_BL
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_the_schedule_is_the_teachers_without_guidance_and_denoising(teacher, own):
    student = make_student(teacher, own)
    steps = student.schedule(5, num_masked=16, options=SamplingOptions(temperature=0.9))
    teachers = teacher.schedule(5, num_masked=16, options=SamplingOptions(temperature=0.9))
    assert steps == [replace(step, guidance=1.0, denoising=None) for step in teachers]
    assert teachers[0].guidance != 1.0
    condition = student.encode([1])
    assert student.with_null(condition) is condition


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SamplingOptions(guidance=3.0), "leave out guidance$"),
        (SamplingOptions(denoising_steps=10, sampler="ddim"), "leave out denoising_steps and sampler$"),
    ],
)
def test_what_only_a_teacher_can_follow_is_refused(teacher, own, options, message):
    student = make_student(teacher, own)
    with pytest.raises(ValueError, match=message):
        student.schedule(5, num_masked=16, options=options)
    with pytest.raises(ValueError, match=r"expected guidance 1\.0, got 2\.0"):
        student.tokens(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, dtype=torch.int64), 2.0)


def test_only_its_own_parameters_are_copied_and_trained(teacher, own):
    student = make_student(teacher.requires_grad_(True), own)
    teachers = dict(teacher.named_parameters())
    for name, parameter in as_module(student.model).named_parameters():
        assert parameter.requires_grad == (name in own)
        assert (parameter is teachers[name]) == (name not in own)
        assert torch.equal(parameter, teachers[name])


def test_an_unknown_parameter_is_named(teacher):
    with pytest.raises(ValueError, match="toy has no parameters body: it has mask_token"):
        make_student(teacher, ["body"])


def test_a_call_under_gradients_keeps_neither_activations_nor_features(teacher):
    """Saved for the backward pass: nothing as large as the head's hidden layer, and the same gradients."""
    student = make_student(teacher, teacher.network_parameters())
    features_GBTD = torch.randn(1, 2, 16, 16, requires_grad=True)
    positions_BM, normal_BLC = torch.arange(4).repeat(2, 1), torch.randn(2, 16, 3)
    saved: list[torch.Tensor] = []

    def keep(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        distribution = student.tokens(features_GBTD, positions_BM, 1.0)
        tokens_BMC, _ = distribution.sample(ReplayNoise([normal_BLC]), STEP)
    assert sum(tensor.numel() for tensor in saved) < 8 * 24
    gradients = torch.autograd.grad(tokens_BMC.square().sum(), [features_GBTD, *parameters_of(student)])
    noise_XC = normal_BLC[:, :4].flatten(0, 1)
    kept_XC = student.predict(noise_XC, contexts_at(features_GBTD, positions_BM)[0])
    expected = torch.autograd.grad(kept_XC.square().sum(), [features_GBTD, *parameters_of(student)])
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def parameters_of(student: Student) -> list[torch.nn.Parameter]:
    return list(as_module(student.model).get_submodule("head").parameters())


def test_runs_on_the_meta_device(teacher, own):
    """Reading anything back to the host raises there."""
    student = copy.deepcopy(make_student(teacher, own)).to("meta")
    with torch.no_grad():
        assert generate(student, [0, 1], [3, 4]).tokens_BL.is_meta


def test_half_precision_stays_close(teacher, own):
    student = make_student(teacher, own)
    context_XD, noise_XC = torch.randn(4, 16), torch.randn(4, 3)
    expected_XC = student.predict(noise_XC, context_XD)
    low = copy.deepcopy(student).to(torch.bfloat16)
    tokens_XC = low.predict(noise_XC, context_XD.bfloat16())
    assert tokens_XC.dtype == torch.float32
    torch.testing.assert_close(tokens_XC, expected_XC, rtol=0.05, atol=0.05)
