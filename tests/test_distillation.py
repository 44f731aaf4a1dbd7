"""The distillation criterion: each form looks where it says, and every part of it learns."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from featherface.anchors import decode_boxes, encode_boxes, make_anchors
from featherface.config import TrainConfig
from featherface.losses import (
    BOX_FORMS,
    FEATURE_FORMS,
    FORMS,
    Distillation,
    anchor_weight,
    class_kl,
    decode_clamped,
    giou_loss,
    l2_distance,
    pearson_distance,
    spatial_attention,
)
from featherface.models.networks import FeatherFaceV1, FeatherFaceV2
from featherface.structures import Predictions

ANCHORS = make_anchors(64, 64)
TERMS = {"distill_class", "distill_box", "distill_landmark", "distill", "feature"}
SETTINGS = [
    *({"form": form} for form in FORMS),
    {"box_form": "smooth_l1"},
    {"feature_form": "l2"},
    {"feature_attention": "none"},
    {"feature_form": "l2", "feature_attention": "none"},
]
settings = pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))


def random_predictions(batch: int = 2, scale: float = 1.0) -> Predictions:
    parts = [torch.randn(batch, len(ANCHORS), n) * scale for n in (4, 2, 10)]
    return Predictions(*(part.requires_grad_() for part in parts))


def features(channels: int, batch: int = 2, sides: tuple[int, ...] = (8, 4, 2)) -> list:
    return [torch.randn(batch, channels, n, n, requires_grad=True) for n in sides]


def of_classes(logits: torch.Tensor) -> Predictions:
    """Predictions of logits (A, 2), or (B, A, 2), that differ in these alone."""
    logits = logits if logits.ndim == 3 else logits[None]
    boxes, landmarks = (torch.zeros(*logits.shape[:2], n) for n in (4, 10))
    return Predictions(boxes, logits, landmarks)


def class_term(student: torch.Tensor, teacher: torch.Tensor, *, selected=None, **setting) -> float:
    """The class term of logits (A, 2), one image's, or (B, A, 2)."""
    anchors = ANCHORS[:1].expand(student.shape[-2], 4)
    criterion, maps = Distillation(2, 2, levels=1, **setting), [torch.zeros(1, 2, 1, 1)]
    terms = criterion(
        of_classes(student),
        of_classes(teacher),
        maps,
        maps,
        anchors=anchors,
        selected=None if selected is None else selected[None],
    )
    return terms["distill_class"].item()


def box_term(student: torch.Tensor, teacher: torch.Tensor, face: torch.Tensor, **setting) -> float:
    """The box term of boxes (A, 4) in pixels, the teacher's face probabilities being (A,)."""
    count, maps = len(student), [torch.zeros(1, 2, 1, 1)]
    anchors = torch.tensor([[12.0, 8.0, 16.0, 16.0]]).expand(count, 4)
    logits = torch.stack((torch.zeros(count), torch.logit(face, eps=1e-6)), dim=-1)
    first, second = (of_classes(logits)._replace(box_deltas=encode_boxes(b, anchors)[None])
                     for b in (student, teacher))  # fmt: skip
    criterion = Distillation(2, 2, levels=1, **setting)
    return criterion(first, second, maps, maps, anchors=anchors)["distill_box"].item()


def test_the_settings_know_every_form():
    choices = {item.name: item.metadata["choices"] for item in fields(TrainConfig)}
    assert choices["distill_form"] == FORMS and choices["distill_box"] == BOX_FORMS
    assert choices["feature_form"] == FEATURE_FORMS


@settings
def test_every_projection_and_student_parameter_learns_and_the_teacher_does_not(setting):
    student, teacher, criterion = FeatherFaceV2(), FeatherFaceV1(), Distillation(32, 64, **setting)
    trained = torch.nn.ModuleDict({"student": student, "criterion": criterion}).train()
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    teacher.eval()
    before_teacher = {name: value.clone() for name, value in teacher.state_dict().items()}
    images = torch.randn(2, 3, 64, 64) * 50
    mine, theirs = student.forward_features(images), teacher.forward_features(images)
    terms = criterion(
        student.forward_head(mine),
        teacher.forward_head(theirs),  # with its graph: the criterion itself has to detach
        mine,
        theirs,
        anchors=ANCHORS,
        selected=torch.rand(2, len(ANCHORS)),
    )
    assert set(terms) == TERMS and all(value.shape == () for value in terms.values())
    (terms["distill"] + terms["feature"]).backward()
    grads = {name: p.grad for name, p in trained.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    assert [name for name, grad in grads.items() if not grad.any()] == []
    assert all(p.grad is None for p in teacher.parameters())
    torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.0).step()
    assert [n for n, p in trained.named_parameters() if torch.equal(before[n], p)] == []
    assert all(torch.equal(before_teacher[n], value) for n, value in teacher.state_dict().items())


@pytest.mark.parametrize("feature_form", ["pkd", "l2"])
def test_a_projection_learns_by_its_signal_not_by_rounding(feature_form):
    """A bias under a correlation would get a gradient of rounding noise, and Adam amplifies it."""
    criterion, mine, theirs = (
        Distillation(8, 8, feature_form=feature_form),
        features(8),
        features(8),
    )
    student = random_predictions()
    criterion(student, student, mine, theirs, anchors=ANCHORS)["feature"].backward()
    sizes = {name: p.grad.abs().max().item() for name, p in criterion.named_parameters()}
    assert min(sizes.values()) > 1e-5, sizes


@settings
def test_swapping_two_teacher_outputs_changes_the_loss(setting):
    criterion, student, teacher = (
        Distillation(32, 64, **setting),
        random_predictions(),
        random_predictions(),
    )
    mine, theirs = features(32), features(64)
    plain = criterion(student, teacher, mine, theirs, anchors=ANCHORS)
    for name in Predictions._fields:
        for axis in (0, 1, 2):  # images, anchors, values
            swapped = teacher._replace(**{name: getattr(teacher, name).flip(axis)})
            other = criterion(student, swapped, mine, theirs, anchors=ANCHORS)
            assert not torch.isclose(other["distill"], plain["distill"], rtol=1e-4), (name, axis)
    other = criterion(student, teacher, mine, [x.flip(0) for x in theirs], anchors=ANCHORS)
    assert not torch.isclose(other["feature"], plain["feature"], rtol=1e-4)


@settings
def test_equal_answers_and_features_cost_nothing(setting):
    criterion, same, maps = Distillation(8, 8, **setting), random_predictions(), features(8)
    for project in criterion.projections:
        torch.nn.init.dirac_(project.weight)
        if project.bias is not None:
            torch.nn.init.zeros_(project.bias)
    selected = torch.rand(2, len(ANCHORS))
    terms = criterion(same, same, maps, maps, anchors=ANCHORS, selected=selected)
    assert all(abs(value.item()) < 1e-5 for value in terms.values()), terms


@settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_finite_whatever_the_answers_even_for_one_tiny_image(setting, dtype, scale):
    """One image with a P5 of one position; deltas and logits of ±50; no confident anchor."""
    criterion = Distillation(8, 8, **setting)
    student, teacher = random_predictions(1, scale), random_predictions(1, scale)
    with torch.no_grad():
        teacher.class_logits[:] = torch.tensor([9.0, -9.0])
        teacher.class_logits[:, ::2] = torch.tensor([-9.0, 9.0]) * (scale > 1)
        for part in (student, teacher):
            part.box_deltas[:] = part.box_deltas.sign() * 50 if scale > 1 else part.box_deltas
    mine, theirs = features(8, 1, (4, 2, 1)), features(8, 1, (4, 2, 1))
    terms = criterion(
        Predictions(*(part.to(dtype) for part in student)),
        Predictions(*(part.to(dtype) for part in teacher)),
        [x.to(dtype) for x in mine],
        [x.to(dtype) for x in theirs],
        anchors=ANCHORS,
    )
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    (terms["distill"] + terms["feature"]).backward()
    assert all(x.grad.isfinite().all() for x in (*student, *mine, *criterion.parameters()))


@settings
def test_computed_in_float32_whatever_comes_in_and_under_autocast(setting):
    criterion = Distillation(8, 8, **setting)
    half = [
        type(x)(*(part.bfloat16() for part in x)) if isinstance(x, Predictions)
        else [part.bfloat16() for part in x]
        for x in (random_predictions(), random_predictions(), features(8), features(8))
    ]  # fmt: skip
    full = [
        Predictions(*(part.float() for part in x)) if isinstance(x, Predictions)
        else [part.float() for part in x]
        for x in half
    ]  # fmt: skip
    plain = criterion(*full, anchors=ANCHORS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = criterion(*half, anchors=ANCHORS)
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


@settings
def test_never_looks_at_a_value(setting):
    """What reads a value (.item(), a boolean mask, a branch) makes a GPU wait; vmap refuses it."""
    criterion = Distillation(8, 8, **setting)
    teacher, mine, theirs = random_predictions(), features(8), features(8)
    selected = torch.rand(2, len(ANCHORS))

    def total(*student: torch.Tensor) -> torch.Tensor:
        terms = criterion(
            Predictions(*student), teacher, mine, theirs, anchors=ANCHORS, selected=selected
        )
        return terms["distill"] + terms["feature"]

    many = [torch.randn(3, *part.shape) for part in teacher]
    grads = torch.vmap(torch.func.grad(total, argnums=(0, 1, 2)))(*many)
    assert all(grad.isfinite().all() for grad in grads)
    boxes = torch.rand(3, 5, 4)
    with pytest.raises(RuntimeError):  # vmap does notice
        torch.vmap(generalized_box_iou_loss)(boxes, boxes)


# class answers


def test_class_kl_is_zero_only_for_equal_answers_and_keeps_its_scale():
    teacher, student = torch.randn(2, 5, 2), torch.randn(2, 5, 2)
    assert float(class_kl(teacher, teacher, 4.0).abs().max()) < 1e-6
    assert (class_kl(student, teacher, 4.0) > 0).all()
    plain = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(class_kl(student, teacher, 1.0), plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_naive_is_the_textbook_kl(temperature):
    student, teacher = torch.randn(30, 2), torch.randn(30, 2)
    expected = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).softmax(-1),
        reduction="batchmean",
    )
    given = class_term(student, teacher, form="naive", temperature=temperature)
    assert given == pytest.approx(expected.item(), rel=1e-4)
    everything = torch.ones(30)
    assert given == class_term(
        student, teacher, form="naive", temperature=temperature, selected=everything
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("chosen", [False, True])
def test_forms_weight_anchors_as_defined(temperature, chosen):
    student, teacher = torch.randn(30, 2) * 3, torch.randn(30, 2) * 3
    p_s, p_t = student.softmax(-1)[:, 1], teacher.softmax(-1)[:, 1]
    selected = torch.rand(30) if chosen else torch.zeros(30)
    weights = {
        "weighted": p_t + (p_t - p_s).abs(),
        "disagreement": (p_t - p_s).abs(),
        "saturating": (p_t - p_s).square() / ((p_t - p_s).square() + 0.01),
        "band": torch.tensor([float(0.1 < p < 0.9) for p in p_t]),
    }
    kl = class_kl(student[None], teacher[None], temperature)[0]
    for form, weight in weights.items():
        weight = weight + selected
        given = class_term(
            student, teacher, form=form, temperature=temperature,
            selected=selected if chosen else None,
        )  # fmt: skip
        assert given == pytest.approx(((kl * weight).sum() / weight.sum()).item(), rel=1e-4), form


def test_saturating_hears_faint_false_alarms_that_disagreement_does_not():
    """Under "disagreement" false alarms pull by the square of their scores."""
    scores, shares = torch.tensor([0.2, 0.8]), {}
    for form in ("disagreement", "saturating"):
        logits = torch.stack((torch.zeros(2), scores.logit()), dim=-1).requires_grad_()
        weight = anchor_weight(form, logits.softmax(-1)[:, 1], torch.full((2,), 1e-4))
        teacher = torch.tensor([9.2, 0.0]).repeat(2, 1)  # no face, scored 0.0001
        (class_kl(logits[None], teacher[None], 1.0)[0] * weight).sum().backward()
        pull = logits.grad[:, 1].abs()
        shares[form] = (pull[0] / pull[1]).item()
    assert shares["disagreement"] == pytest.approx(1 / 16, rel=0.01)
    assert shares["saturating"] == pytest.approx(0.8 / 0.985 / 4, rel=0.01)


def test_a_flood_of_easy_background_drowns_the_naive_form_alone():
    faces = torch.randn(40, 2), torch.randn(40, 2)
    flood = torch.tensor([[8.0, -8.0]]).repeat(400, 1), torch.tensor([[8.1, -8.0]]).repeat(400, 1)
    change = {}
    for form in FORMS:
        alone = class_term(*faces, form=form)
        both = class_term(*(torch.cat(pair) for pair in zip(faces, flood, strict=True)), form=form)
        change[form] = both / alone
    assert change.pop("naive") == pytest.approx(1 / 11, rel=0.05)
    assert all(ratio == pytest.approx(1.0, rel=0.01) for ratio in change.values()), change


@pytest.mark.parametrize("form", [form for form in FORMS if form != "naive"])
def test_selected_anchors_enter_the_weight(form):
    student = torch.tensor([9.0, -9.0]).repeat(20, 1)
    teacher = torch.tensor([12.0, -12.0]).repeat(20, 1)  # agrees, and is sure: weight 0
    student[:5] *= 2.0  # disagrees only in the logit, where nobody looks unless it is selected
    selected = torch.zeros(20)
    selected[:5] = 1.0
    kl = class_kl(student[None], teacher[None], 4.0)[0]
    assert class_term(student, teacher, form=form) < 0.01 * kl[0].item()
    given = class_term(student, teacher, form=form, selected=selected)
    assert given == pytest.approx(kl[0].item(), rel=1e-3)
    half = torch.where(torch.arange(20) < 10, 0.5, 0.0)  # as much of either kind
    given = class_term(student, teacher, form=form, selected=half)
    assert given == pytest.approx((kl[0] + kl[9]).item() / 2, rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_an_anchors_weight_has_no_gradient_and_at_most_one_from_being_selected(form):
    student = torch.rand(2, 9, requires_grad=True)
    teacher, selected = torch.rand(2, 9), torch.rand(2, 9, requires_grad=True)
    plain = anchor_weight(form, student, teacher)
    given = anchor_weight(form, student, teacher, selected)
    assert not given.requires_grad
    torch.testing.assert_close(given - plain, selected.detach() * (form != "naive"))
    twice = anchor_weight(form, student, teacher, torch.full((2, 9), 2.0))
    torch.testing.assert_close(twice - plain, torch.full((2, 9), float(form != "naive")))


def test_a_batch_without_an_anchor_that_counts_is_not_amplified():
    sure = torch.tensor([12.0, -12.0]).repeat(20, 1)
    for form in ("disagreement", "saturating", "band"):
        assert class_term(sure * 0.9, sure, form=form) < 1e-6


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_crowd_counts_its_weight_to_the_power(power):
    """One image with 100 anchors that disagree, one with four: their shares of the class term."""
    teacher = torch.tensor([9.0, -9.0]).repeat(2, 100, 1)
    student = teacher.clone()
    student[0], student[1, :4] = torch.tensor([-6.0, 6.0]), torch.tensor([-9.0, 9.0])
    crowd, pair = (class_kl(student[i, :1], teacher[i, :1], 4.0).item() for i in range(2))
    given = class_term(student, teacher, form="disagreement", crowd_power=power)
    shares = 100**power, 4**power
    expected = (crowd * shares[0] + pair * shares[1]) / sum(shares)
    assert given == pytest.approx(expected, rel=1e-3)


def test_an_image_in_which_hardly_an_anchor_counts_is_not_amplified():
    teacher = torch.tensor([9.0, -9.0]).repeat(2, 100, 1)
    student = teacher.clone()
    student[0, :4] = torch.tensor([-9.0, 9.0])
    alone = class_term(student, teacher, form="disagreement", crowd_power=0.0)
    student[1, 0] = torch.tensor([2.5, -2.5])  # scored 0.007
    both = class_term(student, teacher, form="disagreement", crowd_power=0.0)
    assert both == pytest.approx(alone, rel=0.02)


# boxes and landmarks


def test_giou_of_hand_made_boxes():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    others = torch.tensor(
        [[0.0, 0, 10, 10], [5.0, 0, 15, 10], [20.0, 0, 30, 10], [2.5, 2.5, 7.5, 7.5]]
    )
    expected = torch.tensor([0.0, 2 / 3, 4 / 3, 3 / 4])
    torch.testing.assert_close(giou_loss(boxes, others), expected, atol=1e-6, rtol=1e-5)
    one = torch.ones(2)
    assert box_term(boxes[1:3], others[1:3], one) == pytest.approx(1.0, rel=1e-4)
    assert box_term(boxes, others, torch.ones(4)) == pytest.approx(11 / 16, rel=1e-4)


def test_giou_is_torchvisions():
    place, size = torch.rand(2, 500, 2) * 100, torch.rand(2, 500, 2) * 60 + 0.1
    boxes, others = torch.cat((place, place + size), dim=-1)
    ours, theirs = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    given, expected = giou_loss(ours, others), generalized_box_iou_loss(theirs, others)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)
    given.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("delta", [-1e4, -50.0, 50.0, 1e4])
def test_wild_deltas_are_boxes_of_sane_size(delta):
    deltas = torch.full((len(ANCHORS), 4), delta, requires_grad=True)
    boxes = decode_clamped(deltas, ANCHORS)
    growth = (boxes[:, 2:] - boxes[:, :2]) / ANCHORS[:, 2:]
    expected = torch.full_like(growth, 62.5 if delta > 0 else 1 / 62.5)
    torch.testing.assert_close(growth, expected, rtol=0.3, atol=0)  # far away float32 is coarse
    giou_loss(boxes, decode_clamped(torch.zeros_like(deltas), ANCHORS)).sum().backward()
    assert deltas.grad.isfinite().all()
    if delta == 50.0:  # around all boxes: each side must shrink, though it is clamped
        assert (deltas.grad[:, 2:] > 0).all()
    calm = torch.randn(len(ANCHORS), 4) * 5
    torch.testing.assert_close(decode_clamped(calm, ANCHORS), decode_boxes(calm, ANCHORS))


def test_boxes_are_learned_where_the_teacher_is_confident_by_its_probability():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    others = torch.tensor([[5.0, 0, 15, 10], [20.0, 0, 30, 10], [0.0, 0, 60, 60]])
    face = torch.tensor([0.9, 0.6, 0.29])  # the last does not count
    expected = (0.9 * 2 / 3 + 0.6 * 4 / 3) / 1.5
    assert box_term(boxes, others, face) == pytest.approx(expected, rel=1e-4)
    assert box_term(boxes, others, face * 0.3) == 0.0
    doubtful = torch.tensor([0.4, 0.1, 0.1])
    assert box_term(boxes, others, doubtful) == pytest.approx(0.4 * 2 / 3, rel=1e-4)


def test_smooth_l1_is_the_published_box_term():
    boxes, others = torch.tensor([[4.0, 0, 20, 16]]), torch.tensor([[4.8, 0, 20.8, 16]])
    expected = 0.5 * 0.5**2  # smooth L1 of one delta of 0.8 / (0.1 · 16)
    one = torch.ones(1)
    assert box_term(boxes, others, one, box_form="smooth_l1") == pytest.approx(expected, rel=1e-3)
    naive = box_term(boxes, others, one, form="naive")
    assert naive == box_term(boxes, others, one), "the weights of the KL do not choose the box term"


def test_landmarks_count_by_the_point_where_the_teacher_is_confident():
    criterion, teacher = Distillation(8, 8), random_predictions()
    logits = torch.zeros(2, len(ANCHORS), 2)
    logits[..., 1] = torch.logit(torch.tensor(0.1))
    logits[0, :5, 1] = torch.logit(torch.tensor(0.8))
    logits[1, :5, 1] = torch.logit(torch.tensor(0.4))
    wrong = torch.zeros(2, len(ANCHORS), 10)
    wrong[0], wrong[1, :, :4] = 3.0, 3.0  # all five points; two of them
    teacher = teacher._replace(class_logits=logits)
    student = teacher._replace(landmark_deltas=teacher.landmark_deltas + wrong)
    terms = criterion(student, teacher, features(8), features(8), anchors=ANCHORS)
    each = 2 * 2.5  # x and y of a point, 3 away
    expected = (0.8 * each + 0.4 * each * 2 / 5) / 1.2
    assert terms["distill_landmark"].item() == pytest.approx(expected, rel=1e-4)


def test_the_total_weights_its_terms():
    criterion = Distillation(8, 8, box_weight=3.0, landmark_weight=0.5)
    terms = criterion(
        random_predictions(), random_predictions(), features(8), features(8), anchors=ANCHORS
    )
    expected = terms["distill_class"] + 3.0 * terms["distill_box"] + 0.5 * terms["distill_landmark"]
    torch.testing.assert_close(terms["distill"], expected)


# features


@pytest.mark.parametrize("attention", [False, True])
def test_pearson_distance_ignores_scale_and_offset(attention):
    x, y = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    weight = spatial_attention(y) if attention else 1.0
    assert float(pearson_distance(3 * x + 5, x, weight)) < 1e-4
    assert float(pearson_distance(-x, x, weight)) == pytest.approx(2.0, abs=1e-3)
    plain = pearson_distance(x, y, weight)
    each = torch.tensor([0.1, 1.0, 7.0, 30.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(pearson_distance(x, each * y - 3, weight), plain, rtol=1e-3, atol=0)


def test_pearson_distance_is_a_weighted_correlation():
    x, y, weight = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    weight = weight / weight.mean()
    expected = []
    for channel in range(3):
        pair = np.stack([x[:, channel].flatten().numpy(), y[:, channel].flatten().numpy()])
        covariance = np.cov(pair, aweights=weight.flatten().numpy())
        expected.append(1 - covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1]))
    assert pearson_distance(x, y, weight).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_l2_distance_is_the_cosine_of_whole_maps():
    x, y, weight = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5) + 1, torch.rand(2, 1, 4, 5)
    weight = weight / weight.mean()
    for w in (torch.ones_like(weight), weight):
        cosine = F.cosine_similarity((x * w.sqrt()).flatten(), (y * w.sqrt()).flatten(), dim=0)
        assert l2_distance(x, y, w).item() == pytest.approx(1 - cosine.item(), rel=1e-4)
    torch.testing.assert_close(l2_distance(x, 50 * y), l2_distance(x, y), rtol=1e-4, atol=0)
    assert l2_distance(torch.zeros_like(x), y).item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_sums_to_the_positions_and_prefers_the_active_place(dtype):
    maps = torch.rand(2, 8, 6, 5)
    maps[0, :, 2, 3] = -4.0  # strength counts, not sign
    maps[1, :, 5, 0] = 4.0
    weight = spatial_attention(maps.to(dtype).requires_grad_())
    assert weight.shape == (2, 1, 6, 5) and weight.dtype == torch.float32
    assert not weight.requires_grad
    torch.testing.assert_close(weight.sum((1, 2, 3)), torch.full((2,), 30.0))
    assert weight.flatten(1).argmax(1).tolist() == [2 * 5 + 3, 5 * 5 + 0]
    activity = maps.to(dtype).float().abs().mean(1)
    assert (weight[0, 0, 2, 3] / weight[0, 0, 0, 0]).item() == pytest.approx(
        math.exp((activity[0, 2, 3] - activity[0, 0, 0]).item() / 0.5), rel=1e-3
    )


@pytest.mark.parametrize("distance", [pearson_distance, l2_distance])
def test_a_fault_at_the_teachers_active_place_costs_more_with_attention(distance):
    teacher = torch.randn(1, 8, 12, 12) * 0.2
    teacher[..., :4, :4] *= 5.0  # active in one corner
    fault, cost = torch.randn(8, 3, 3) * 0.2, {}
    for weight in (1.0, spatial_attention(teacher)):
        for place in (1, 9):
            wrong = teacher.clone()
            wrong[..., place : place + 3, place : place + 3] += fault
            cost[place] = distance(wrong, teacher, weight).item()
        if isinstance(weight, float):
            plain = cost[1] / cost[9]
    assert plain == pytest.approx(1.0, rel=0.3)
    assert cost[1] / cost[9] > 2.0


def test_attention_is_used_when_asked():
    student, mine, theirs = random_predictions(), features(8), features(8)
    theirs = [x.detach() * 2 for x in theirs]
    for form, distance in (("pkd", pearson_distance), ("l2", l2_distance)):
        for attention in ("none", "teacher"):
            criterion = Distillation(8, 8, feature_form=form, feature_attention=attention)
            given = criterion(student, student, mine, theirs, anchors=ANCHORS)["feature"]
            expected = [
                distance(project(x), y, spatial_attention(y) if attention == "teacher" else 1.0)
                for project, x, y in zip(criterion.projections, mine, theirs, strict=True)
            ]
            torch.testing.assert_close(given, sum(expected) / 3)


# misuse


def test_unknown_settings_and_maps_that_do_not_fit_are_refused():
    for name in ("form", "box_form", "feature_form", "feature_attention"):
        with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'wieghted'"):
            Distillation(8, 8, **{name: "wieghted"})
    student, criterion = random_predictions(), Distillation(8, 8)
    with pytest.raises(ValueError, match="differ in shape"):
        criterion(student, student, features(8), features(8, sides=(8, 4, 1)), anchors=ANCHORS)
    with pytest.raises(ValueError):
        criterion(student, student, features(8), features(8)[:2], anchors=ANCHORS)
