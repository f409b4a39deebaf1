"""The inverse of the bordered Gram matrix against a dense inverse, after every change."""

import numpy as np
import pytest
import torch

from egg_sparse.mappings.bordered_inverse import BorderedInverse

BATCH, N_BITS, SLOTS = 5, 12, 40

both_libraries = pytest.mark.parametrize("convert", [np.asarray, torch.tensor], ids=["numpy", "torch"])
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Reference:
    """The vectors of each example by slot, and what follows from them by linear algebra alone."""

    def __init__(self, vectors):
        self.slots = [[vector] for vector in vectors]

    def used(self, b):
        return [slot for slot, vector in enumerate(self.slots[b]) if vector is not None]

    def vectors(self, b):
        return np.array([self.slots[b][slot] for slot in self.used(b)])

    def inverse(self, b):
        """The dense inverse, with rows and columns of 0 for unused slots."""
        vectors, kept = self.vectors(b), [0, *(slot + 1 for slot in self.used(b))]
        bordered = np.ones((len(kept), len(kept)))
        bordered[0, 0] = 0
        bordered[1:, 1:] = vectors @ vectors.T
        inverse = np.zeros((len(self.slots[b]) + 1,) * 2)
        inverse[np.ix_(kept, kept)] = np.linalg.inv(bordered)
        return inverse

    def distance(self, b, z):
        """The squared distance of z from the affine hull, by least squares."""
        first, *others = self.vectors(b)
        if not others:
            return ((z - first) ** 2).sum()
        edges = np.array(others).T - first[:, None]
        coefficients = np.linalg.lstsq(edges, z - first, rcond=None)[0]
        return ((z - first - edges @ coefficients) ** 2).sum()

    def products(self, z):
        """The inner products (B, n) of z (B, D) with the vectors, 0 for unused slots."""
        return np.array([[0.0 if v is None else v @ z[b] for v in vectors] for b, vectors in enumerate(self.slots)])


def as_matrices(inverse, convert, dtype):
    """K, column by column: projections are K (1, products)."""

    def column(products):
        return np.asarray(inverse.project(convert(products), convert(np.zeros(len(products), dtype)))[0])

    batch, n = inverse.used().shape
    units = [np.tile(unit, (batch, 1)) for unit in np.eye(n, dtype=dtype)]
    first = column(np.zeros((batch, n), dtype))
    return np.stack([first, *(column(unit) - first for unit in units)], 2)


def check(inverse, reference, convert, dtype):
    tolerance = 1e-9 if dtype == "float64" else 2e-3
    expected = np.array([reference.inverse(b) for b in range(len(reference.slots))])
    np.testing.assert_allclose(as_matrices(inverse, convert, dtype), expected, atol=tolerance, rtol=tolerance)
    used = np.array([[v is not None for v in vectors] for vectors in reference.slots])
    np.testing.assert_array_equal(inverse.used(), used)


def append(inverse, reference, z, wanted, convert, dtype):
    """Appends z (B, D) where wanted and not in the hull; compares the distances."""
    products, norms = reference.products(z).astype(dtype), (z**2).sum(1).astype(dtype)
    weights, distances = inverse.project(convert(products), convert(norms))
    expected = np.array([reference.distance(b, z[b]) for b in range(len(z))])
    np.testing.assert_allclose(distances, expected, atol=1e-9 if dtype == "float64" else 2e-3)
    enters = wanted & (expected > 0.2)
    inverse.append(weights, convert(np.maximum(np.asarray(distances), 0.1)), convert(enters))
    for b, vectors in enumerate(reference.slots):
        vectors.append(z[b] if enters[b] else None)


def remove(inverse, reference, wanted, rng, convert):
    rows = np.array([b for b in np.flatnonzero(wanted) if len(reference.used(b)) > 1], dtype=int)
    slots = np.array([rng.choice(reference.used(b)) for b in rows], dtype=int)
    inverse.remove(convert(rows), convert(slots))
    for b, slot in zip(rows, slots, strict=True):
        reference.slots[b][slot] = None


def bits(rng, dtype):
    return rng.integers(0, 2, (BATCH, N_BITS)).astype(dtype)


def filled(seed, convert, dtype, steps):
    """An inverse after many appends and removals, compared after each."""
    rng = np.random.default_rng(seed)
    first = bits(rng, dtype)
    inverse, reference = BorderedInverse(convert(first), SLOTS), Reference(first)
    check(inverse, reference, convert, dtype)
    for _ in range(steps):
        append(inverse, reference, bits(rng, dtype), rng.random(BATCH) < 0.8, convert, dtype)
        check(inverse, reference, convert, dtype)
        remove(inverse, reference, rng.random(BATCH) < 0.4, rng, convert)
        check(inverse, reference, convert, dtype)
    return inverse, reference, rng


@pytest.mark.slow
@both_libraries
@both_dtypes
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_dense_inverse_after_appends_and_removals(seed, convert, dtype):
    _, reference, _ = filled(seed, convert, dtype, SLOTS - 1)
    counts = [len(reference.used(b)) for b in range(BATCH)]
    assert min(counts) > 3
    assert len(set(counts)) > 1, "examples with equal numbers of vectors test no masks"


@both_libraries
@both_dtypes
def test_refactorizes(convert, dtype):
    inverse, reference, rng = filled(0, convert, dtype, 12)
    # active vectors first, as the solver packs them
    packed = [[v for v in vectors if v is not None] for vectors in reference.slots]
    n = max(map(len, packed))
    reference.slots = [vectors + [None] * (n - len(vectors)) for vectors in packed]
    used = np.array([[v is not None for v in vectors] for vectors in reference.slots])
    vectors = np.array([[rng.random(N_BITS) if v is None else v for v in vectors] for vectors in reference.slots])
    inverse.refactorize(convert(vectors.astype(dtype)), convert(used), 2 * n)
    check(inverse, reference, convert, dtype)
    for _ in range(n):  # there is room for as many again
        append(inverse, reference, bits(rng, dtype), np.ones(BATCH, bool), convert, dtype)
        remove(inverse, reference, rng.random(BATCH) < 0.4, rng, convert)
        check(inverse, reference, convert, dtype)


@both_libraries
@both_dtypes
def test_solves_the_equality_constrained_problem(convert, dtype):
    inverse, reference, rng = filled(1, convert, dtype, 10)
    values = rng.normal(size=inverse.used().shape).astype(dtype)
    found = np.asarray(inverse.solve(convert(values)))
    for b in range(BATCH):
        used, vectors = reference.used(b), reference.vectors(b).astype("float64")
        system = np.block([[np.zeros((1, 1)), np.ones((1, len(used)))], [np.ones((len(used), 1)), vectors @ vectors.T]])
        expected = np.linalg.solve(system, [1, *values[b, used]])[1:]
        np.testing.assert_allclose(found[b, used], expected, atol=1e-9 if dtype == "float64" else 5e-3)


@both_libraries
@both_dtypes
def test_distance_without_a_vector(convert, dtype):
    inverse, reference, rng = filled(2, convert, dtype, 10)
    z = bits(rng, dtype)
    products, norms = reference.products(z).astype(dtype), (z**2).sum(1).astype(dtype)
    weights, distances = inverse.project(convert(products), convert(norms))
    rows = np.array([0, 2, 4])
    slots = np.array([reference.used(b)[-1] for b in rows])
    gained = np.asarray(inverse.distance_gained(convert(rows), convert(slots), weights))
    inverse.remove(convert(rows), convert(slots))
    for b, slot in zip(rows, slots, strict=True):
        reference.slots[b][slot] = None
    expected = [reference.distance(b, z[b]) for b in rows]
    tolerance = 1e-9 if dtype == "float64" else 5e-3
    np.testing.assert_allclose(np.asarray(distances)[rows] + gained, expected, atol=tolerance)
    _, again = inverse.project(convert(products[rows]), convert(norms[rows]), convert(rows))
    np.testing.assert_allclose(again, expected, atol=tolerance)


@both_libraries
def test_keeps_some_examples(convert):
    inverse, reference, rng = filled(3, convert, "float64", 8)
    kept = np.array([True, False, True, True, False])
    inverse.keep(convert(kept))
    reference.slots = [vectors for vectors, stays in zip(reference.slots, kept, strict=True) if stays]
    check(inverse, reference, convert, "float64")
    append(inverse, reference, bits(rng, "float64")[kept], np.ones(3, bool), convert, "float64")
    check(inverse, reference, convert, "float64")
