"""Random visit sequences for the tests of batching, models and objectives."""

import jax
import numpy as np

from ehrjax.types import VisitSequences

VOCAB_SIZE = 20


def make_sequences(visits_each, *, level="patient", num_labels=1, seed=0, max_codes=4):
    """Sequences with the given number of visits an example; some visits hold no code. Labels are 0/1, all counted."""
    rng = np.random.default_rng(seed)
    visits_each = np.asarray(visits_each)
    num_visits = int(visits_each.sum())
    codes_each = rng.integers(0, max_codes + 1, num_visits)
    rows = len(visits_each) if level == "patient" else num_visits
    return VisitSequences(
        codes=rng.integers(5, VOCAB_SIZE, codes_each.sum()).astype(np.int32),
        visit_offsets=np.concatenate([[0], np.cumsum(codes_each)]),
        example_offsets=np.concatenate([[0], np.cumsum(visits_each)]),
        ages=rng.uniform(0, 90, num_visits).astype(np.float32),
        gap_days=rng.uniform(0, 400, num_visits).astype(np.float32),
        subject_ids=np.arange(100, 100 + len(visits_each)),
        times=np.zeros(len(visits_each), np.int64),
        labels=rng.integers(0, 2, (rows, num_labels)).astype(np.float32),
        label_mask=np.ones((rows, num_labels), bool),
    )


def pad_batch(batch, *, rows=0, visits=0, codes=0):
    """The batch with so many more empty rows, visits and codes; padding holds junk where a mask covers it."""
    visit_pads = ((0, rows), (0, visits))
    label_pads = (*visit_pads[: batch.labels.ndim - 1], (0, 0))
    return batch._replace(
        codes=np.pad(batch.codes, ((0, rows), (0, codes)), constant_values=7),
        code_visits=np.pad(batch.code_visits, ((0, rows), (0, codes)), constant_values=-1),
        visit_mask=np.pad(batch.visit_mask, visit_pads),
        ages=np.pad(batch.ages, visit_pads, constant_values=55.0),
        gap_days=np.pad(batch.gap_days, visit_pads, constant_values=3.0),
        labels=np.pad(batch.labels, label_pads, constant_values=1),
        label_mask=np.pad(batch.label_mask, label_pads),
        example_mask=np.pad(batch.example_mask, (0, rows)),
        example_ids=np.pad(batch.example_ids, (0, rows), constant_values=-1),
    )


def random_params(module, *inputs, seed=0):
    """Variables of a module filled with small normal numbers, without compiling its initialisers."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype), shapes)
