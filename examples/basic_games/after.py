"""Rebuilding an object, or finding it among others, from a sequence of symbols."""

import argparse
import sys

from egg_sparse import marginalize
from egg_sparse.host import core
from examples.basic_games import agents


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, [*agents.SETTINGS, *params])

    train, validation = agents.build_data(opts)
    sender, receiver = agents.build_agents(opts)
    sender_sizes = opts.vocab_size, opts.sender_embedding, opts.sender_hidden, opts.max_len
    receiver_sizes = opts.vocab_size, opts.receiver_embedding, opts.receiver_hidden
    loss = agents.LOSSES[opts.game_type]
    callbacks = [core.ConsoleLogger(print_train_loss=True, as_json=True)]
    if opts.mode == "gs":
        sender = core.RnnSenderGS(sender, *sender_sizes, opts.temperature, cell=opts.sender_cell)
        receiver = core.RnnReceiverGS(receiver, *receiver_sizes, cell=opts.receiver_cell)
        game = core.SenderReceiverRnnGS(sender, receiver, loss)
    else:
        sender = core.RnnSenderReinforce(sender, *sender_sizes, cell=opts.sender_cell)
        receiver = core.RnnReceiverDeterministic(receiver, *receiver_sizes, cell=opts.receiver_cell)
        game = core.SenderReceiverRnnReinforce(sender, receiver, loss, opts.sender_entropy_coeff)
    game = marginalize(game)

    trainer = core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        train_data=train,
        validation_data=validation,
        callbacks=callbacks,
    )
    trainer.train(n_epochs=opts.n_epochs)
    core.close()


if __name__ == "__main__":
    main(sys.argv[1:])
