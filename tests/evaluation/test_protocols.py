"""Protocols: the classes that are scored."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from caswit.data.classes import ClassTable, LandClass
from caswit.data.dataset import Dataset
from caswit.errors import DataError
from caswit.evaluation.metrics import count
from caswit.evaluation.protocols import scored_classes


def table(ids, ignored=()):
    return ClassTable(
        tuple(LandClass(id=i, name=f"class {i}", color=f"#0000{i:02x}", ignore=i in ignored) for i in ids)
    )


def dataset(classes, tmp_path):
    return Dataset(name="d", path=tmp_path / "dataset.yaml", classes=classes, scenes=())


def counted(scored, truth, prediction):
    there, found = scored.pair(truth, prediction)
    return count(found, there, num_classes=len(scored.classes), band_px=1).confusion


@pytest.fixture
def maps():
    """Truth and prediction among all 19 ids, which are also their indices."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 19, (60, 70)).astype(np.uint8) for _ in range(2))


def test_flair15_drops_rows_and_columns_of_a_19_class_confusion_matrix(maps, tmp_path):
    """As IGN's own evaluation: the whole matrix, then ``confmat[np.ix_(used, used)]``."""
    truth, prediction = maps
    everything = table(range(19))
    scored = scored_classes(everything, dataset(everything, tmp_path), "flair15")
    whole = confusion_matrix(truth.ravel(), prediction.ravel(), labels=range(19))
    np.testing.assert_array_equal(counted(scored, truth, prediction), whole[:15, :15])


def test_flair15_of_a_model_of_15_classes_counts_every_labelled_pixel(maps, tmp_path):
    truth, prediction = maps
    ignoring = table(range(19), ignored=range(15, 19))
    scored = scored_classes(table(range(15)), dataset(ignoring, tmp_path), "flair15")
    prediction = prediction % 15
    truth = np.where(truth >= 15, 255, truth).astype(np.uint8)
    counts = counted(scored, truth, prediction)
    assert counts.shape == (15, 15)
    assert counts.sum() == (truth != 255).sum()
    labelled = truth != 255
    expected = confusion_matrix(truth[labelled], prediction[labelled], labels=range(15))
    np.testing.assert_array_equal(counts, expected)


def test_ids_need_not_be_indices(tmp_path):
    """A model whose first classes are of no interest: its index 3 is id 0."""
    model, data = table([15, 16, 17, *range(15)]), table(range(15))
    scored = scored_classes(model, dataset(data, tmp_path), "flair15")
    truth = np.array([[0, 14, 2]], np.uint8)
    prediction = np.array([[3, 17, 0]], np.uint8)  # ids 0, 14 and 15
    counts = counted(scored, truth, prediction)
    assert counts[0, 0] == counts[14, 14] == 1
    assert counts.sum() == 2  # predicted as 15: dropped, not an error


def test_urur8_counts_others(tmp_path):
    eight = table(range(8))
    scored = scored_classes(eight, dataset(eight, tmp_path), "urur8")
    assert scored.classes.names[0] == "class 0"
    counts = counted(scored, np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8))
    assert counts[0, 1] == 4


def test_urur8_refuses_a_dataset_that_ignores_others(tmp_path):
    data = dataset(table(range(8), ignored=[0]), tmp_path)
    with pytest.raises(DataError, match="scores class ids 0-7, the dataset does not have 0 or ignores them"):
        scored_classes(table(range(8)), data, "urur8")


def test_urur8_refuses_a_dataset_of_further_classes(tmp_path):
    fifteen = table(range(15))
    with pytest.raises(DataError, match="for datasets of class ids 0-7 alone, this one also has 8 class 8"):
        scored_classes(fifteen, dataset(fifteen, tmp_path), "urur8")


def test_names_must_agree(tmp_path):
    other = ClassTable(tuple(LandClass(id=i, name="x", color="#000000") for i in range(8)))
    with pytest.raises(DataError, match="of the classes that urur8 scores the model has 0 x"):
        scored_classes(other, dataset(table(range(8)), tmp_path), "urur8")


def test_without_a_protocol_nothing_changes(maps, tmp_path):
    truth, prediction = maps
    everything = table(range(19))
    scored = scored_classes(everything, dataset(everything, tmp_path), None)
    there, found = scored.pair(truth, prediction)
    np.testing.assert_array_equal(there, truth)
    np.testing.assert_array_equal(found, prediction)


def test_names_of_classes_may_be_spelled_with_underscores(tmp_path):
    """The French model was renamed from swimming_pool, which datasets have still."""
    names = "swimming pool", "Swimming_pool"
    ours, theirs = (ClassTable((LandClass(id=2, name=name, color="#3de6eb"),)) for name in names)
    assert scored_classes(ours, dataset(theirs, tmp_path), None).classes == theirs
    assert ours.named("swimming_pool") == theirs.named("swimming pool") == (2,)
    assert ours.by_word("Swimming_Pool") == ours.classes[0]
    with pytest.raises(DataError, match="scores need the same classes"):
        scored_classes(table([2]), dataset(theirs, tmp_path), None)
