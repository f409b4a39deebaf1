"""An autoencoder of concepts that are not equally frequent, whose code is a sequence of symbols."""

import argparse
import sys

from egg_sparse.host import core
from examples.channel import agents


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, [*agents.SETTINGS, *params])

    train, validation = agents.build_data(opts)
    sender, receiver = agents.build_agents(opts)
    if opts.transformer:
        sender_sizes = opts.sender_embedding, opts.max_len, opts.num_layers, opts.num_heads, opts.sender_hidden
        sender = core.TransformerSenderReinforce(sender, opts.vocab_size, *sender_sizes)
        sender = agents.mended(sender)  # EGG's gives PyTorch an argument that it no longer has
        receiver_sizes = opts.max_len, opts.receiver_embedding, opts.num_heads, opts.receiver_hidden, opts.num_layers
        receiver = core.TransformerReceiverDeterministic(receiver, opts.vocab_size, *receiver_sizes, causal=False)
    else:
        sender = core.RnnSenderReinforce(
            sender, opts.vocab_size, opts.sender_embedding, opts.sender_hidden, opts.max_len, cell=opts.sender_cell
        )
        receiver = core.RnnReceiverDeterministic(
            receiver, opts.vocab_size, opts.receiver_embedding, opts.receiver_hidden, cell=opts.receiver_cell
        )
    game = core.SenderReceiverRnnReinforce(
        sender,
        receiver,
        agents.loss,
        sender_entropy_coeff=opts.sender_entropy_coeff,
        length_cost=opts.length_cost,
        train_logging_strategy=core.LoggingStrategy.minimal(),
    )

    trainer = core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        train_data=train,
        validation_data=validation,
        callbacks=[
            core.ConsoleLogger(print_train_loss=True, as_json=True),
            core.EarlyStopperAccuracy(opts.early_stopping_thr),
        ],
    )
    trainer.train(n_epochs=opts.n_epochs)
    core.close()


if __name__ == "__main__":
    main(sys.argv[1:])
