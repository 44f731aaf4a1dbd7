"""The distillation criterion: each form looks where it says, and every part of it learns."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from featherface.anchors import decode_boxes, encode_boxes, make_anchors
from featherface.config import SETTINGS
from featherface.losses import (
    RECIPES,
    Distillation,
    PublishedDistillation,
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
NONE = torch.zeros(2, len(ANCHORS))  # no anchor is selected by the task's class term
recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def make(recipe: type[Distillation], student: int = 8, teacher: int = 8, **changes) -> Distillation:
    options = {"temperature": 4.0, "box_weight": 2.0, "landmark_weight": 1.0, **changes}
    return recipe(student, teacher, **options)


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


def class_term(recipe, student, teacher, *, selected=None, temperature: float = 4.0) -> float:
    """The class term of logits (A, 2), those of one image."""
    anchors = ANCHORS[:1].expand(len(student), 4)
    criterion = make(recipe, 2, 2, levels=1, temperature=temperature)
    maps = [torch.zeros(1, 2, 1, 1)]
    selected = torch.zeros(len(student)) if selected is None else selected
    answers = of_classes(student), of_classes(teacher)
    terms = criterion(*answers, maps, maps, anchors=anchors, selected=selected[None])
    return terms["distill_class"].item()


def box_term(student, teacher, face, recipe=Distillation) -> float:
    """The box term of boxes (A, 4) in pixels, the teacher's face probabilities being (A,)."""
    count, maps = len(student), [torch.zeros(1, 2, 1, 1)]
    anchors = torch.tensor([[12.0, 8.0, 16.0, 16.0]]).expand(count, 4)
    logits = torch.stack((torch.zeros(count), torch.logit(face, eps=1e-6)), dim=-1)
    first, second = (of_classes(logits)._replace(box_deltas=encode_boxes(b, anchors)[None])
                     for b in (student, teacher))  # fmt: skip
    criterion, selected = make(recipe, 2, 2, levels=1), torch.zeros(1, count)
    terms = criterion(first, second, maps, maps, anchors=anchors, selected=selected)
    return terms["distill_box"].item()


def test_the_settings_know_every_recipe():
    assert set(SETTINGS["recipe"].metadata["choices"]) == RECIPES.keys()


@recipes
def test_every_projection_and_student_parameter_learns_and_the_teacher_does_not(recipe):
    student, teacher, criterion = FeatherFaceV2(), FeatherFaceV1(), make(recipe, 32, 64)
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


@recipes
def test_a_projection_learns_by_its_signal_not_by_rounding(recipe):
    """A bias under a correlation would get a gradient of rounding noise, and Adam amplifies it."""
    criterion, same = make(recipe), random_predictions()
    terms = criterion(same, same, features(8), features(8), anchors=ANCHORS, selected=NONE)
    terms["feature"].backward()
    sizes = {name: p.grad.abs().max().item() for name, p in criterion.named_parameters()}
    assert min(sizes.values()) > 1e-5, sizes


@recipes
def test_swapping_two_teacher_outputs_changes_the_loss(recipe):
    criterion, student, teacher = (
        make(recipe, 32, 64),
        random_predictions(),
        random_predictions(),
    )
    mine, theirs = features(32), features(64)
    plain = criterion(student, teacher, mine, theirs, anchors=ANCHORS, selected=NONE)
    for name in Predictions._fields:
        for axis in (0, 1, 2):  # images, anchors, values
            swapped = teacher._replace(**{name: getattr(teacher, name).flip(axis)})
            other = criterion(student, swapped, mine, theirs, anchors=ANCHORS, selected=NONE)
            assert not torch.isclose(other["distill"], plain["distill"], rtol=1e-4), (name, axis)
    other = criterion(
        student, teacher, mine, [x.flip(0) for x in theirs], anchors=ANCHORS, selected=NONE
    )
    assert not torch.isclose(other["feature"], plain["feature"], rtol=1e-4)


@recipes
def test_equal_answers_and_features_cost_nothing(recipe):
    criterion, same, maps = make(recipe), random_predictions(), features(8)
    for project in criterion.projections:
        torch.nn.init.dirac_(project.weight)
        if project.bias is not None:
            torch.nn.init.zeros_(project.bias)
    selected = torch.rand(2, len(ANCHORS))
    terms = criterion(same, same, maps, maps, anchors=ANCHORS, selected=selected)
    assert all(abs(value.item()) < 1e-5 for value in terms.values()), terms


@recipes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_finite_whatever_the_answers_even_for_one_tiny_image(recipe, dtype, scale):
    """One image with a P5 of one position; deltas and logits of ±50; no confident anchor."""
    criterion = make(recipe)
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
        selected=NONE[:1],
    )
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    (terms["distill"] + terms["feature"]).backward()
    assert all(x.grad.isfinite().all() for x in (*student, *mine, *criterion.parameters()))


@recipes
def test_computed_in_float32_whatever_comes_in_and_under_autocast(recipe):
    criterion = make(recipe)
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
    plain = criterion(*full, anchors=ANCHORS, selected=NONE)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = criterion(*half, anchors=ANCHORS, selected=NONE)
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


@recipes
def test_never_looks_at_a_value(recipe):
    """What reads a value (.item(), a boolean mask, a branch) makes a GPU wait; vmap refuses it."""
    criterion = make(recipe)
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
def test_the_published_class_term_is_the_textbook_kl(temperature):
    student, teacher = torch.randn(30, 2), torch.randn(30, 2)
    expected = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).softmax(-1),
        reduction="batchmean",
    )
    for selected in (torch.zeros(30), torch.ones(30)):
        given = class_term(
            PublishedDistillation, student, teacher, selected=selected, temperature=temperature
        )
        assert given == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("chosen", [0.0, 0.5, 2.0])
def test_anchors_are_weighted_as_defined(temperature, chosen):
    student, teacher = torch.randn(30, 2) * 3, torch.randn(30, 2) * 3
    p_s, p_t = student.softmax(-1)[:, 1], teacher.softmax(-1)[:, 1]
    selected = torch.rand(30) * chosen
    weight = p_t + (p_t - p_s).abs() + selected.clamp(max=1.0)
    kl = class_kl(student[None], teacher[None], temperature)[0]
    given = class_term(Distillation, student, teacher, selected=selected, temperature=temperature)
    assert given == pytest.approx(((kl * weight).sum() / weight.sum()).item(), rel=1e-4)


def test_a_flood_of_easy_background_drowns_the_published_form_alone():
    faces = torch.randn(40, 2), torch.randn(40, 2)
    flood = torch.tensor([[8.0, -8.0]]).repeat(400, 1), torch.tensor([[8.1, -8.0]]).repeat(400, 1)
    both = [torch.cat(pair) for pair in zip(faces, flood, strict=True)]
    change = {name: class_term(r, *both) / class_term(r, *faces) for name, r in RECIPES.items()}
    assert change["published"] == pytest.approx(1 / 11, rel=0.05)
    assert change["improved"] == pytest.approx(1.0, rel=0.01)


@recipes
def test_an_anchors_weight_has_no_gradient(recipe):
    """The KL's own gradient must not reach the weight, or p_s would be pulled to p_t twice."""
    student = torch.randn(1, 9, 2, requires_grad=True)
    teacher, selected = torch.randn(1, 9, 2), torch.rand(1, 9, requires_grad=True)
    seen = []

    class Watched(recipe):
        def anchor_weight(self, *given):
            seen.append(super().anchor_weight(*given))
            return seen[-1]

    criterion, maps = make(Watched, 2, 2, levels=1), [torch.zeros(1, 2, 1, 1)]
    answers = of_classes(student), of_classes(teacher)
    terms = criterion(*answers, maps, maps, anchors=ANCHORS[:9], selected=selected)
    terms["distill_class"].backward()
    assert not seen[0].requires_grad and student.grad.any() and selected.grad is None


def test_a_batch_without_an_anchor_that_counts_is_not_amplified():
    sure = torch.tensor([12.0, -12.0]).repeat(20, 1)
    assert class_term(Distillation, sure * 0.9, sure) < 1e-6


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
    given = box_term(boxes, others, one, PublishedDistillation)
    assert given == pytest.approx(expected, rel=1e-3) != box_term(boxes, others, one)


def test_landmarks_count_by_the_point_where_the_teacher_is_confident():
    criterion, teacher = make(Distillation), random_predictions()
    logits = torch.zeros(2, len(ANCHORS), 2)
    logits[..., 1] = torch.logit(torch.tensor(0.1))
    logits[0, :5, 1] = torch.logit(torch.tensor(0.8))
    logits[1, :5, 1] = torch.logit(torch.tensor(0.4))
    wrong = torch.zeros(2, len(ANCHORS), 10)
    wrong[0], wrong[1, :, :4] = 3.0, 3.0  # all five points; two of them
    teacher = teacher._replace(class_logits=logits)
    student = teacher._replace(landmark_deltas=teacher.landmark_deltas + wrong)
    terms = criterion(student, teacher, features(8), features(8), anchors=ANCHORS, selected=NONE)
    each = 2 * 2.5  # x and y of a point, 3 away
    expected = (0.8 * each + 0.4 * each * 2 / 5) / 1.2
    assert terms["distill_landmark"].item() == pytest.approx(expected, rel=1e-4)


def test_the_total_weights_its_terms():
    criterion = make(Distillation, box_weight=3.0, landmark_weight=0.5)
    answers = random_predictions(), random_predictions(), features(8), features(8)
    terms = criterion(*answers, anchors=ANCHORS, selected=NONE)
    expected = terms["distill_class"] + 3.0 * terms["distill_box"] + 0.5 * terms["distill_landmark"]
    torch.testing.assert_close(terms["distill"], expected)


# features


@pytest.mark.parametrize("attention", [False, True])
def test_pearson_distance_ignores_scale_and_offset(attention):
    x, y = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    weight = spatial_attention(y) if attention else torch.ones(2, 1, 8, 8)
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
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5) + 1
    cosine = F.cosine_similarity(x.flatten(), y.flatten(), dim=0)
    assert l2_distance(x, y).item() == pytest.approx(1 - cosine.item(), rel=1e-4)
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


def test_a_fault_at_the_teachers_active_place_costs_more_with_attention():
    teacher = torch.randn(1, 8, 12, 12) * 0.2
    teacher[..., :4, :4] *= 5.0  # active in one corner
    fault, ratios = torch.randn(8, 3, 3) * 0.2, []
    for weight in (torch.ones(1, 1, 12, 12), spatial_attention(teacher)):
        cost = {}
        for at in (1, 9):
            wrong = teacher.clone()
            wrong[..., at : at + 3, at : at + 3] += fault
            cost[at] = pearson_distance(wrong, teacher, weight).item()
        ratios.append(cost[1] / cost[9])
    assert ratios[0] == pytest.approx(1.0, rel=0.3) and ratios[1] > 2.0


@recipes
def test_the_feature_term_is_the_mean_over_the_levels(recipe):
    criterion, same, mine = make(recipe), random_predictions(), features(8)
    theirs = [x.detach() * 2 for x in features(8)]
    given = criterion(same, same, mine, theirs, anchors=ANCHORS, selected=NONE)["feature"]
    pairs = [(p(x), y) for p, x, y in zip(criterion.projections, mine, theirs, strict=True)]
    if recipe is Distillation:
        expected = [pearson_distance(x, y, spatial_attention(y)) for x, y in pairs]
    else:
        expected = [l2_distance(x, y) for x, y in pairs]
    torch.testing.assert_close(given, sum(expected) / 3)


# misuse


def test_maps_that_do_not_fit_are_refused():
    student, criterion = random_predictions(), make(Distillation)
    options = {"anchors": ANCHORS, "selected": NONE}
    with pytest.raises(ValueError, match="differ in shape"):
        criterion(student, student, features(8), features(8, sides=(8, 4, 1)), **options)
    with pytest.raises(ValueError):
        criterion(student, student, features(8), features(8)[:2], **options)
