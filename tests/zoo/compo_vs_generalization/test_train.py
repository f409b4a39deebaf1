"""Compositionality and generalization: objects, agents, statistics, and runs of every mode and cell."""

import functools
import itertools
import json
import re
from collections import Counter

import entmax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egg_sparse import host
from egg_sparse.language import Language, bosdis, posdis, topographic_similarity
from egg_sparse.zoo import checkpoints
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.compo_vs_generalization import data, train
from egg_sparse.zoo.compo_vs_generalization.games import build_game, reconstruction_loss
from egg_sparse.zoo.compo_vs_generalization.train import PROG, build_loaders, main, parse_options
from egg_sparse.zoo.sequences import play

SMALL = [
    "--n_values=4", "--hold_out=0.2", "--vocab_size=5", "--max_len=2", "--data_scaler=2", "--n_epochs=2",
    "--batch_size=8", "--sender_hidden=8", "--receiver_hidden=8", "--sender_emb=8", "--receiver_emb=8",
    "--random_seed=3", "--no_cuda",
]  # fmt: skip


class TestData:
    @given(st.integers(2, 4), st.integers(2, 5), st.floats(0.01, 0.99), st.sampled_from(data.SPLITS))
    @settings(max_examples=100, deadline=None)
    def test_split(self, n_attributes, n_values, share, kind):
        every = set(itertools.product(range(n_values), repeat=n_attributes))
        known = {each for each in every if kind == "combinations" or 0 not in each}
        values = set(range(n_values)) if kind == "combinations" else set(range(1, n_values))
        n_held_out = int(share * len(known))
        if len(values) < 2 or not 1 <= n_held_out <= len(known) - len(values):
            with pytest.raises(ValueError, match=r"--hold_out|--n_values"):
                data.split(n_attributes, n_values, kind, share)
            return
        split = data.split(n_attributes, n_values, kind, share)
        train_, unseen, new = (
            list(map(tuple, part.tolist())) for part in (split.train, split.unseen, split.new_values)
        )
        assert len(unseen) == n_held_out
        assert len(set(train_) | set(unseen)) == len(train_) + len(unseen), "no object is twice in them"
        assert set(train_) | set(unseen) == known
        for attribute in range(n_attributes):
            assert {each[attribute] for each in train_} == values
        assert sorted(new) == (sorted(each for each in every if each.count(0) == 1) if kind == "values" else [])

    def test_hold_out_is_uniform_beyond_the_objects_that_show_every_value(self, monkeypatch):
        counts = Counter()
        for seed in range(2000):
            monkeypatch.setattr(data, "_SPLIT_SEED", seed)
            counts.update(map(tuple, data.split(2, 4, "combinations", 0.25).unseen.tolist()))
        assert set(counts) == set(itertools.product(range(4), repeat=2))
        frequencies = torch.tensor([float(count) for count in counts.values()]) / 2000
        assert (frequencies - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5

    def test_all_objects(self):
        assert data.all_objects(3, 4).tolist() == [list(each) for each in itertools.product(range(4), repeat=3)]
        assert len(data.all_objects(2, 1000)) == data.MAX_OBJECTS

    @pytest.mark.parametrize("sizes", [(2, 1001), (20, 2), (10**9, 10**9)])
    def test_too_many_objects(self, sizes):
        with pytest.raises(ValueError, match=rf"--n_attributes.* {sizes[1]} to the power of {sizes[0]}"):
            data.split(*sizes, "combinations", 0.2)

    def test_loader(self):
        objects = torch.tensor([[0, 1], [2, 0], [1, 1]])
        loader = data.ObjectLoader(objects, 3, batch_size=4, seed=1, times=5)
        first, second = list(loader), list(loader)
        assert len(loader) == len(first) == 4
        for inputs, labels in first:
            for row, label in zip(inputs.reshape(-1, 2, 3).tolist(), labels.tolist(), strict=True):
                assert row == [[float(value == each) for value in range(3)] for each in label]
        seen = torch.cat([labels for _, labels in first])
        assert Counter(map(tuple, seen.tolist())) == dict.fromkeys(map(tuple, objects.tolist()), 5)
        assert not torch.equal(seen, torch.cat([labels for _, labels in second]))
        loader.set_epoch(1)
        assert torch.equal(seen, torch.cat([labels for _, labels in loader]))

    def test_fixed_loader_leaves_out_zeros(self):
        objects = torch.tensor([[0, 1], [2, 0], [1, 1]])
        (batch,) = data.ObjectLoader(objects, 3, 9, fixed=True, ignore_zeros=True)
        assert batch[1].tolist() == [[data.NOT_SCORED, 1], [2, data.NOT_SCORED], [1, 1]]
        assert batch[0].argmax(1).tolist() == [0, 2, 1], "the sender sees them"


def test_loss_is_the_mean_over_scored_attributes():
    scores = torch.randn(4, 2 * 3, dtype=torch.float64)
    labels = torch.tensor([[0, 2], [1, 1], [data.NOT_SCORED, 2], [2, data.NOT_SCORED]])
    losses, aux = reconstruction_loss(None, None, None, scores, labels, None)
    for n in range(4):
        scored = [a for a in range(2) if labels[n, a] != data.NOT_SCORED]
        each = [-scores[n, 3 * a : 3 * a + 3].log_softmax(0)[labels[n, a]] for a in scored]
        right = [bool(scores[n, 3 * a : 3 * a + 3].argmax() == labels[n, a]) for a in scored]
        torch.testing.assert_close(losses[n], sum(each) / len(each))
        assert aux["acc"][n] == float(all(right))
        assert aux["acc_or"][n] == sum(right) / len(right)


def test_the_language_is_that_of_the_greedy_messages():
    objects = torch.from_numpy(data.all_objects(2, 4))
    messages = torch.nn.functional.pad(objects + 1, (0, 1))
    messages[0, 0] = 0
    found = train.describe_language(objects, messages)
    language = Language.of_messages(messages)
    assert found["length"] == pytest.approx(2 - 2 / 16)
    assert found["messages_used"] == 16
    assert found["posdis"] == posdis(language, objects)
    assert found["bosdis"] == bosdis(language, objects)
    assert found["topsim"] == topographic_similarity(language, objects, message_distance="levenshtein")


MODES = {
    "marg": ["--mode=marg"],
    "marg sparsemax rnn lstm": ["--normalizer=sparsemax", "--sender_cell=rnn", "--receiver_cell=lstm"],
    "marg softmax lstm rnn": ["--normalizer=softmax", "--sender_cell=lstm", "--receiver_cell=rnn"],
    "marg 1.3 transformer": ["--normalizer=1.3", "--sender_cell=transformer", "--receiver_cell=transformer"],
    "marg bounded": ["--max_support=2", "--temperature=2", "--length_cost=0.1"],
    "marg layers": ["--sender_num_layers=2", "--receiver_num_layers=2"],
    "marg values": ["--mode=marg", "--split=values"],
    "rf": ["--mode=rf"],
    "rf lstm rnn": ["--mode=rf", "--sender_cell=lstm", "--receiver_cell=rnn", "--baseline=builtin"],
    "rf transformer": ["--mode=rf", "--sender_cell=transformer", "--receiver_cell=transformer", "--baseline=no"],
    "rf layers": ["--mode=rf", "--sender_num_layers=2", "--receiver_num_layers=2", "--length_cost=0.1"],
    "gs": ["--mode=gs"],
    "gs straight through": ["--mode=gs", "--straight_through", "--temperature=0.5", "--length_cost=0.1"],
    "gs rnn lstm": ["--mode=gs", "--sender_cell=rnn", "--receiver_cell=lstm"],
    "gs values": ["--mode=gs", "--split=values"],
}
ALWAYS = {
    "mode", "acc_train", "acc_or_train", "acc_unseen", "acc_or_unseen", "length", "messages_used", "topsim", "posdis",
    "bosdis", "receiver_calls", "seconds", "host", "device",
}  # fmt: skip
OF_SUMS = {"acc_expected_train", "acc_expected_unseen", "support", "exact"}
OF_VALUES = {"acc_new_values", "acc_or_new_values"}


def game_of(*params):
    opts = parse_options([*SMALL, *params])
    split = data.split(opts.n_attributes, opts.n_values, opts.split, opts.hold_out)
    torch.manual_seed(5)
    return opts, build_game(opts), split, build_loaders(opts, split)


class TestEvaluation:
    @pytest.mark.parametrize("mode", ["marg", "rf", "gs", "rf transformer"])
    def test_equals_playing_one_object_after_the_other(self, mode):
        opts, game, split, loaders = game_of(*MODES[mode], "--split=values")
        with torch.no_grad():
            for parameter in game.parameters():
                parameter.mul_(3)
        found = train.evaluate(opts, game, loaders, split)
        game.eval()
        for part, objects in (("train", split.train), ("unseen", split.unseen), ("new_values", split.new_values)):
            right, messages = [], set()
            for each in objects.tolist():
                inputs = torch.nn.functional.one_hot(torch.tensor(each), 4).flatten().float()[None]
                with torch.no_grad():
                    message = game.sender(inputs)
                    if opts.mode == "gs":
                        symbols = message.argmax(-1)[0].tolist()
                        output = game.receiver(message)[:, symbols.index(0)]
                    else:
                        symbols = message[0][0].tolist()
                        output = game.receiver(message[0])[0]
                guess = output.reshape(2, 4).argmax(1).tolist()
                scored = [a for a in range(2) if part != "new_values" or each[a] != 0]
                right.append([guess[a] == each[a] for a in scored])
                messages.add(tuple(symbols[: symbols.index(0)]))
            assert found[f"acc_{part}"] == pytest.approx(sum(map(all, right)) / len(right))
            assert found[f"acc_or_{part}"] == pytest.approx(sum(sum(r) / len(r) for r in right) / len(right))
            if part == "train":
                assert found["messages_used"] == len(messages)

    @pytest.mark.parametrize(
        ("normalizer", "normalize"),
        [
            ("sparsemax", entmax.sparsemax),
            ("1.3", functools.partial(entmax.entmax_bisect, alpha=1.3)),
            ("softmax", torch.softmax),
        ],
    )
    def test_expected_success_equals_brute_force(self, normalizer, normalize):
        """Over all messages of up to two symbols."""
        opts, game, split, loaders = game_of(f"--normalizer={normalizer}", "--max_support=100", "--temperature=0.5")
        with torch.no_grad():
            for parameter in game.parameters():
                parameter.mul_(3)
        found = train.evaluate(opts, game, loaders, split)
        sender, receiver = game.eval().sender, game.receiver
        inputs = torch.nn.functional.one_hot(split.train, 4).flatten(1).float()
        right, support = torch.zeros(len(inputs)), torch.zeros(len(inputs))

        def probs_after(prefix):
            state, symbols = sender.agent(inputs), sender.sos_embedding.expand(len(inputs), -1)
            for symbol in (*prefix, None):
                state = sender.cells[0](symbols, state)
                if symbol is not None:
                    symbols = sender.embedding.weight[symbol].expand(len(inputs), -1)
            return normalize(sender.hidden_to_output(state) / 0.5, dim=1)

        with torch.no_grad():
            for message in [(), *((i,) for i in range(1, 5)), *itertools.product(range(1, 5), repeat=2)]:
                p = torch.ones(len(inputs))
                for i in range(2):
                    if i <= len(message):
                        p = p * probs_after(message[:i])[:, message[i] if i < len(message) else 0]
                padded = torch.tensor([[*message, *[0] * (3 - len(message))]]).expand(len(inputs), -1)
                output = receiver(padded)[0].unflatten(1, (2, 4)).argmax(2)
                right += p * (output == split.train).all(1)
                support += p > 0
        assert found["acc_expected_train"] == pytest.approx(float(right.mean()), abs=1e-5)
        assert found["support"] == pytest.approx(float(support.mean()))
        assert found["exact"] == 1
        assert (found["support"] == 21) == (normalizer == "softmax")

    def test_random_numbers_are_left_as_they_were(self):
        _, game, _, loaders = game_of("--mode=gs")
        before = torch.get_rng_state()
        play(game, loaders["train"], torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), before)


class TestRuns:
    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode(self, mode, tmp_path, capsys):
        final = main([*SMALL, *MODES[mode], "--out=run"])
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert json.loads(lines[-1]) == final
        sums = mode.split()[0] == "marg"
        assert set(final) == ALWAYS | (OF_SUMS if sums else set()) | (OF_VALUES if "values" in mode else set())
        assert final["host"] == ("egg" if host.is_egg() else "standin")
        for name in final:
            if name.startswith("acc"):
                assert 0 <= final[name] <= 1
        assert 0 <= final["length"] <= 2
        assert "warning" not in err
        metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
        assert [(line["mode"], line["epoch"]) for line in metrics] == [
            ("train", 1), ("validation", 1), ("train", 2), ("validation", 2),
        ]  # fmt: skip
        assert metrics[-1]["acc"] == pytest.approx(final["acc_unseen"])
        assert metrics[-1]["acc_or"] == pytest.approx(final["acc_or_unseen"])
        assert {"acc", "acc_or", "length", "loss"} <= set(metrics[0])
        if sums:
            assert metrics[-1]["acc_expected"] == pytest.approx(final["acc_expected_unseen"])
            assert 1 <= final["support"] <= (2 if "bounded" in mode else 16)
            assert 0 <= final["exact"] <= 1
            assert final["receiver_calls"] >= final["support"]
        assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((tmp_path / "run/results.json").read_text()) == final
        again = main(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar", "--no_cuda"])
        assert {**again, "seconds": 0} == {**final, "seconds": 0}

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["marg", "marg bounded", "rf", "rf transformer", "gs"])
    def test_a_resumed_run_equals_the_whole_one(self, mode, tmp_path):
        options = [*SMALL, *MODES[mode], "--n_epochs=3", "--keep=3"]
        main([*options, "--out=whole"])
        main([*options, "--out=cut", "--load_from_checkpoint=whole/checkpoints/2.tar"])
        whole, cut = (checkpoints.read(tmp_path / name / "checkpoints/final.tar") for name in ("whole", "cut"))
        for name, value in whole.model_state_dict.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(cut.model_state_dict[name], value, atol=0, rtol=0, equal_nan=True)
            else:
                assert str(cut.model_state_dict[name]) == str(value)
        metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
        assert metrics[0][4:] == metrics[1]

    @pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "transformer"])
    def test_the_first_step_is_computed_like_any_other(self, cell):
        _, game, _, loaders = game_of("--max_support=2", f"--receiver_cell={cell}", "--temperature=1")
        batch = next(iter(loaders["batches"]))
        steps = []
        for _ in range(2):
            torch.manual_seed(1)
            game.zero_grad()
            loss, _ = game(*batch)
            loss.backward()
            steps.append([loss.detach(), torch.rand(1), *(p.grad for p in game.parameters() if p.grad is not None)])
        for first, later in zip(*steps, strict=True):
            assert torch.equal(first, later)

    @pytest.mark.slow
    def test_one_seed_one_result(self, tmp_path):
        seeds = (5, 5, 6)
        results = [main([*SMALL, "--mode=rf", f"--random_seed={s}", f"--out={i}"]) for i, s in enumerate(seeds)]
        metrics = [(tmp_path / f"{i}/metrics.jsonl").read_text() for i in range(3)]
        assert metrics[0] == metrics[1] != metrics[2]
        assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}

    def test_metrics_of_relaxed_messages_keep_no_graph(self):
        _, game, _, loaders = game_of("--mode=gs")
        loss, played = game(*next(iter(loaders["batches"])))
        assert loss.requires_grad
        assert not any(value.requires_grad for value in played.aux.values())

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["marg", "rf", "gs"])
    @pytest.mark.parametrize("sizes", [["--vocab_size=1"], ["--max_len=1"], ["--n_attributes=3", "--batch_size=1000"]])
    def test_smallest_and_other_sizes(self, mode, sizes):
        final = main([*SMALL, f"--mode={mode}", "--n_epochs=1", *sizes])
        if sizes == ["--vocab_size=1"]:
            assert final["length"] == 0
            assert final["messages_used"] == 1
            assert final["topsim"] == final["posdis"] == final["bosdis"] == 0
        assert final["length"] <= (1 if sizes == ["--max_len=1"] else 2)

    @pytest.mark.slow
    def test_learns(self):
        final = main(["--n_values=6", "--vocab_size=20", "--data_scaler=80", "--n_epochs=8", "--random_seed=1"])
        assert final["acc_train"] > 0.9, "chance is 1 in 36"
        assert final["messages_used"] >= 0.9 * 33

    def test_no_epochs(self):
        assert main([*SMALL, "--n_epochs=0"])["mode"] == "final"

    def test_the_split_does_not_depend_on_the_seed(self):
        unseen = [game_of(f"--random_seed={seed}")[2].unseen for seed in (1, 2)]
        assert torch.equal(*unseen)

    @pytest.mark.parametrize(
        ("params", "unused"),
        [
            (["--mode=rf", "--normalizer=softmax", "--temperature=2"], ["normalizer", "temperature"]),
            (
                ["--mode=gs", "--sender_entropy_coeff=1", "--baseline=no", "--sender_num_layers=2"],
                ["baseline", "sender_entropy_coeff", "sender_num_layers"],
            ),
            (["--mode=rf", "--receiver_num_heads=2"], ["receiver_num_heads"]),
            (["--mode=rf", "--baseline=no", "--length_cost=1"], []),
        ],
    )
    def test_unused_flags_draw_one_warning_each(self, params, unused, capsys):
        parse_options(params)
        assert sorted(re.findall(r"warning: --(\w+) has no effect", capsys.readouterr().err)) == unused


class TestCommand:
    @pytest.mark.parametrize(
        ("params", "named", "status"),
        [
            (["--n_attributes=1"], ["--n_attributes", "'1'"], 2),
            (["--n_values=1"], ["--n_values", "'1'"], 2),
            (["--n_attributes=1000000000"], ["--n_attributes", "1000000000"], 1),
            (["--n_values=2", "--split=values"], ["--n_values", "2"], 1),
            (["--hold_out=0"], ["--hold_out", "'0'"], 2),
            (["--hold_out=nan"], ["--hold_out", "'nan'"], 2),
            (["--hold_out=1"], ["--hold_out", "1.0"], 1),
            (["--hold_out=1e300"], ["--hold_out", "1e+300"], 1),
            (["--hold_out=0.001"], ["--hold_out", "0.001"], 1),
            (["--split=objects"], ["--split", "'objects'"], 2),
            (["--sender_cell=grus"], ["--sender_cell", "'grus'"], 2),
            (["--receiver_hidden=0"], ["--receiver_hidden", "'0'"], 2),
            (["--max_len=0"], ["--max_len", "'0'"], 2),
            (["--vocab_size=0"], ["--vocab_size", "'0'"], 2),
            (["--data_scaler=-1"], ["--data_scaler", "'-1'"], 2),
            (["--length_cost=-1"], ["--length_cost", "'-1'"], 2),
            (["--temperature=0"], ["--temperature", "'0'"], 2),
            (["--normalizer=0.5"], ["--normalizer", "'0.5'"], 2),
            (["--mode=sfe"], ["--mode", "'sfe'"], 2),
            (["--mode=gs", "--receiver_cell=transformer"], ["--receiver_cell", "mode gs", "transformer"], 2),
            (["--sender_cell=transformer", "--sender_emb=10"], ["--sender_emb", "4", "10"], 2),
        ],
    )
    def test_a_mistake_is_one_sentence(self, params, named, status, capsys):
        assert run(PROG, main, [*params, "--no_cuda"]) == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"{PROG}: error: ")
        assert all(name in lines[0] for name in named)
