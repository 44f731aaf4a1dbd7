"""The losses: named, finite, and each part does what it says."""

import pytest
import torch
from conftest import make_targets
from torch.nn import functional as F

from featherface.anchors import encode_boxes, encode_landmarks, make_anchors, match
from featherface.data.mixing import blend
from featherface.losses import hard_negatives, multibox
from featherface.structures import Predictions, Target

ANCHORS = make_anchors(64, 64)
FACES = [(4.0, 4.0, 36.0, 38.0)], [(20.0, 10.0, 50.0, 44.0), (2.0, 2.0, 18.0, 18.0)]


WEIGHTS = {"box_weight": 2.0, "landmark_weight": 1.0}


def multibox_loss(predictions, targets, anchors, **weights) -> dict[str, torch.Tensor]:
    return multibox(predictions, targets, anchors, **(WEIGHTS | weights))[0]


def random_predictions(batch: int = 2, scale: float = 1.0) -> Predictions:
    count = len(ANCHORS)
    parts = [torch.randn(batch, count, n) * scale for n in (4, 2, 10)]
    return Predictions(*(part.requires_grad_() for part in parts))


def perfect_predictions(targets: Target) -> Predictions:
    matches = match(targets, ANCHORS)
    rows = torch.arange(len(matches.face))[:, None]
    boxes = targets.boxes[rows, matches.face]
    points = targets.landmarks[rows, matches.face]
    face = matches.positive * 40.0 - 20.0
    return Predictions(
        torch.nan_to_num(encode_boxes(boxes, ANCHORS), neginf=0.0),
        torch.stack((-face, face), dim=-1),
        encode_landmarks(points, ANCHORS),
    )


def test_terms_are_named_and_weighted():
    losses = multibox_loss(
        random_predictions(), make_targets(*FACES), ANCHORS, box_weight=3.0, landmark_weight=0.5
    )
    assert set(losses) == {"class", "box", "landmark", "task"}
    expected = losses["class"] + 3.0 * losses["box"] + 0.5 * losses["landmark"]
    torch.testing.assert_close(losses["task"], expected)


def test_perfect_predictions_cost_nothing():
    targets = make_targets(*FACES)
    losses = multibox_loss(perfect_predictions(targets), targets, ANCHORS)
    assert float(losses["task"]) < 1e-4


def test_the_value_equals_a_plain_reading_of_the_definition():
    predictions, targets = random_predictions(), make_targets(*FACES)
    matches, losses = match(targets, ANCHORS), multibox_loss(predictions, targets, ANCHORS)
    entropy = box = landmark = 0.0
    for row in range(2):
        positive = matches.positive[row]
        each = F.cross_entropy(predictions.class_logits[row], positive.long(), reduction="none")
        worst = each[~positive].sort(descending=True).values[: 7 * int(positive.sum())]
        entropy = entropy + each[positive].sum() + worst.sum()
        faces = matches.face[row][positive]
        wanted = encode_boxes(targets.boxes[row][faces], ANCHORS[positive])
        box = box + F.smooth_l1_loss(predictions.box_deltas[row][positive], wanted, reduction="sum")
        wanted = encode_landmarks(targets.landmarks[row][faces], ANCHORS[positive])
        landmark = landmark + F.smooth_l1_loss(
            predictions.landmark_deltas[row][positive], wanted, reduction="sum"
        )
    count = matches.positive.sum()
    torch.testing.assert_close(losses["class"], entropy / count)
    torch.testing.assert_close(losses["box"], box / count)
    torch.testing.assert_close(losses["landmark"], landmark / count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", [([], []), (FACES[0], []), FACES])
def test_finite_with_gradients_whatever_the_faces(images, dtype):
    predictions = random_predictions()
    cast = Predictions(*(part.to(dtype) for part in predictions))
    losses = multibox_loss(cast, make_targets(*images), ANCHORS)
    losses["task"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(part.grad).all() for part in predictions)
    assert predictions.class_logits.grad.any(), "background teaches even without a face"


def test_a_batch_padded_to_no_face_at_all():
    none = Target(*(part[:, :0] for part in make_targets([], [])[:-1]))
    losses = multibox_loss(random_predictions(), none, ANCHORS)
    assert torch.isfinite(losses["task"]) and losses["box"].item() == 0


def test_landmarks_that_are_missing_are_masked():
    targets = make_targets(*FACES)
    masked = targets._replace(landmark_mask=torch.zeros_like(targets.landmark_mask))
    wild = masked._replace(landmarks=torch.full_like(targets.landmarks, -1e6))
    predictions = random_predictions()
    assert multibox_loss(predictions, wild, ANCHORS)["landmark"].item() == 0
    one = targets.landmark_mask.clone()
    one[0, 0, 2] = False  # the nose of one face
    losses = multibox_loss(predictions, targets._replace(landmark_mask=one), ANCHORS)
    (grad,) = torch.autograd.grad(losses["landmark"], predictions.landmark_deltas)
    mine = match(targets, ANCHORS).positive[0]
    assert not grad[0, mine][:, 4:6].any() and grad[0, mine][:, :4].any()


def test_ignored_anchors_get_no_gradient():
    targets = make_targets([(18, 18, 21, 21)], FACES[0])
    targets = targets._replace(ignore=torch.tensor([[True], [False]]))
    ignored = match(targets, ANCHORS).ignored
    predictions = random_predictions()
    with torch.no_grad():
        predictions.class_logits[ignored] = torch.tensor([-9.0, 9.0])  # the hardest negatives
    multibox_loss(predictions, targets, ANCHORS)["task"].backward()
    assert ignored.any() and not predictions.class_logits.grad[ignored].any()


def test_a_faces_weight_scales_its_gradient():
    targets = make_targets(FACES[0], FACES[0])
    light = targets._replace(weight=torch.tensor([[1.0], [0.25]]))
    predictions = random_predictions()
    with torch.no_grad():
        for part in predictions:
            part[1] = part[0]
    terms = multibox_loss(predictions, light, ANCHORS)
    (terms["box"] + terms["landmark"]).backward()
    for grad in (predictions.box_deltas.grad, predictions.landmark_deltas.grad):
        assert grad[0].any()
        torch.testing.assert_close(grad[1], 0.25 * grad[0])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.5, 0.999, 1.0])
def test_mixing_an_image_with_itself_costs_what_it_costs_alone(share):
    """Neither the ghosts of a faint image nor twice the faces may change the scale of the loss."""
    targets = make_targets(FACES[0], FACES[0])
    count = len(ANCHORS)
    silent = Predictions(*(torch.zeros(2, count, n) for n in (4, 2, 10)))
    plain = multibox_loss(silent, targets, ANCHORS)
    images = torch.zeros(2, 3, 64, 64)
    _, mixed = blend(images, targets, torch.full((2,), share))
    both = multibox_loss(silent, mixed, ANCHORS)
    assert float(both["class"]) == pytest.approx(float(plain["class"]), rel=0.2)
    assert float(both["box"]) == pytest.approx(float(plain["box"]), rel=0.2)


def test_a_ghost_does_not_take_a_real_faces_anchors():
    real, ghost = make_targets([(6, 6, 22, 22)]), make_targets([(8, 8, 24, 24)])
    pair = Target(*(torch.cat(parts) for parts in zip(real, ghost, strict=True)))
    _, mixed = blend(torch.zeros(2, 3, 64, 64), pair, torch.tensor([0.99, 0.99]))
    own = match(real, ANCHORS).positive[0]
    matches = match(mixed, ANCHORS)
    assert matches.positive[0][own].all()
    assert (matches.face[0][own] == 0).all()


@pytest.mark.parametrize("faces", [FACES, ([], []), (FACES[0], [])])
@pytest.mark.parametrize("hidden", [[], FACES[1]], ids=["none", "some"])
def test_an_unlabelled_image_has_no_share_in_any_term(faces, hidden):
    predictions = random_predictions(batch=3)
    targets = make_targets(*faces, hidden)._replace(labelled=torch.tensor([True, True, False]))
    with torch.no_grad():
        predictions.class_logits[2] = torch.tensor([-9.0, 9.0])  # the hardest negatives of all
    losses, class_weight = multibox(predictions, targets, ANCHORS, **WEIGHTS)
    alone = Predictions(*(part[:2].detach().requires_grad_() for part in predictions))
    expected, expected_weight = multibox(alone, make_targets(*faces), ANCHORS, **WEIGHTS)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert torch.equal(class_weight[:2], expected_weight) and not class_weight[2].any()
    losses["task"].backward()
    expected["task"].backward()
    for mixed, part in zip(predictions, alone, strict=True):
        assert not mixed.grad[2].any()
        torch.testing.assert_close(mixed.grad[:2], part.grad)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_of_unlabelled_images_costs_nothing(rows):
    predictions = random_predictions()
    targets = Target(*(part[:, :rows] for part in make_targets(*FACES)[:-1]))
    targets = targets._replace(labelled=torch.tensor([False, False]))
    losses, class_weight = multibox(predictions, targets, ANCHORS, **WEIGHTS)
    assert [float(value.detach()) for value in losses.values()] == [0.0] * 4
    assert class_weight.shape == (2, len(ANCHORS)) and not class_weight.any()
    losses["task"].backward()
    assert all(part.grad is not None and not part.grad.any() for part in predictions)


def test_the_class_weight_is_that_of_the_class_term():
    predictions, images = random_predictions(), torch.zeros(2, 3, 64, 64)
    _, targets = blend(images, make_targets(*FACES), torch.tensor([0.7, 0.4]))
    losses, class_weight = multibox(predictions, targets, ANCHORS, **WEIGHTS)
    assert class_weight.shape == (2, len(ANCHORS)) and class_weight.dtype == torch.float32
    assert not class_weight.requires_grad
    matches = match(targets, ANCHORS)
    faces = targets.weight.gather(1, matches.face)
    assert torch.equal(class_weight[matches.positive], faces[matches.positive])
    mined = class_weight.masked_fill(matches.positive, 0.0)
    assert set(mined.unique().tolist()) == {0.0, 1.0} and not mined[matches.ignored].any()
    positives = (class_weight - mined).sum(1)
    assert mined.sum(1).tolist() == (7 * positives).round().tolist()
    each = F.cross_entropy(
        predictions.class_logits.transpose(1, 2), matches.positive.long(), reduction="none"
    )
    torch.testing.assert_close(losses["class"], (each * class_weight).sum() / positives.sum())


def test_hard_negatives_are_the_worst_candidates():
    loss = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.2, 0.2, 0.2, 0.2]])
    candidates = torch.tensor([[True, False, True, True], [True] * 4])
    mask = hard_negatives(loss, candidates, torch.tensor([2, 3]))
    assert mask.tolist()[0] == [False, False, True, True]
    assert mask[1].sum() == 3  # ties do not let more in
