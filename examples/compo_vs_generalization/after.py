"""Describing combinations of attributes, of which some are new."""

import argparse
import sys

from egg_sparse import marginalize
from egg_sparse.host import core
from examples.compo_vs_generalization import agents


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, [*agents.SETTINGS, *params])

    train, validation = agents.build_data(opts)
    sender, receiver = agents.build_agents(opts)
    sender_sizes = opts.vocab_size, opts.sender_embedding, opts.sender_hidden, opts.max_len
    receiver_sizes = opts.vocab_size, opts.receiver_embedding, opts.receiver_hidden
    sender = core.RnnSenderReinforce(sender, *sender_sizes, cell=opts.sender_cell)
    receiver = core.RnnReceiverDeterministic(receiver, *receiver_sizes, cell=opts.receiver_cell)
    game = core.SenderReceiverRnnReinforce(sender, receiver, agents.loss, opts.sender_entropy_coeff)
    game = marginalize(game)

    trainer = core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        train_data=train,
        validation_data=validation,
        callbacks=[core.ConsoleLogger(print_train_loss=True, as_json=True)],
    )
    trainer.train(n_epochs=opts.n_epochs)
    core.close()


if __name__ == "__main__":
    main(sys.argv[1:])
