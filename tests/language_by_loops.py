"""The statistics of a language by loops over inputs, messages and pairs, to compare with."""

import collections
import itertools
import math

import numpy as np


def entropy(mass):
    total = sum(mass.values())
    return -sum(p / total * math.log2(p / total) for p in mass.values() if p > 0)


def grouped(table, key):
    """The mass of each key of the rows (input, message, probability)."""
    mass = collections.defaultdict(float)
    for x, m, p in table:
        mass[key(x, m)] += p
    return mass


def information(table, first, second):
    both = grouped(table, lambda x, m: (first(x, m), second(x, m)))
    return entropy(grouped(table, first)) + entropy(grouped(table, second)) - entropy(both)


def gap(table, attributes, columns):
    """The mean gap between the two attributes that say most of a function of the message, over some functions."""
    gaps = []
    for column in columns:
        of_column = entropy(grouped(table, lambda x, m, c=column: c(m)))
        if of_column > 1e-9:
            found = [
                information(table, lambda x, m, i=i: attributes[x][i], lambda x, m, c=column: c(m))
                for i in range(len(attributes[0]))
            ]
            first, second, *_ = [*sorted(found, reverse=True), 0.0]
            gaps.append((first - second) / of_column)
    return sum(gaps) / len(gaps) if gaps else 0.0


def levenshtein(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))


def until_end(message):
    return tuple(itertools.takewhile(lambda symbol: symbol != 0, message))


def edit(a, b):
    mean = (len(a) + len(b)) / 2
    return levenshtein(a, b) / mean if mean else 0.0


def weighted_correlation(x, y, w, ranked):
    x, y, w = (np.array(values, dtype=float) for values in (x, y, w))
    if ranked:
        x, y = (
            np.array([w[(v < value) & ~np.isclose(v, value)].sum() + w[np.isclose(v, value)].sum() / 2 for value in v])
            for v in (x, y)
        )
    w = w / w.sum()
    x, y = x - (w * x).sum(), y - (w * y).sum()
    scale = math.sqrt((w * x * x).sum() * (w * y * y).sum())
    return (w * x * y).sum() / scale if scale > 1e-9 else 0.0


def topographic_similarity(table, weights, inputs, input_distance, message_distance, ranked=True):
    rows = [
        (input_distance(inputs[x], inputs[y]), message_distance(m, n), p * q)
        for (x, m, p), (y, n, q) in itertools.product(table, table)
        if x != y and p * q > 0
    ]
    return weighted_correlation(*zip(*rows, strict=True), ranked) if rows else 0.0


def residual_entropy(table, attributes, n_positions):
    best = math.inf
    n_attributes = len(attributes[0])
    for deal in itertools.product(range(n_attributes), repeat=n_positions):
        left = 0.0
        for i in range(n_attributes):
            known = entropy(grouped(table, lambda x, m, i=i: attributes[x][i]))
            own = [j for j in range(n_positions) if deal[j] == i]
            said = information(
                table, lambda x, m, i=i: attributes[x][i], lambda x, m, own=own: tuple(m[j] for j in own)
            )
            left += (known - said) / known if known > 1e-9 else 0.0
        best = min(best, left / n_attributes)
    return best


def conflict_count(table, attributes, n_positions, n_inputs):
    n_attributes = len(attributes[0])
    n = min(n_positions, n_attributes)
    best = math.inf
    for positions in itertools.permutations(range(n_positions), n):
        for chosen in itertools.combinations(range(n_attributes), n):
            conflicts = 0.0
            for j, i in zip(positions, chosen, strict=True):
                cells = grouped(table, lambda x, m, j=j, i=i: (m[j], attributes[x][i]))
                usual = collections.defaultdict(float)
                for (symbol, _), mass in cells.items():
                    usual[symbol] = max(usual[symbol], mass)
                conflicts += sum(cells.values()) - sum(usual.values())
            best = min(best, conflicts)
    return n_inputs * best
