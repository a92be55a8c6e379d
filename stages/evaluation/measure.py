"""Everything measured on one model, as plain numbers and arrays, so that one model at a time is in memory."""

from stages.contract import Progress
from stages.corpus.chats import encode_pair
from stages.corpus.vocabulary import END_OF_TEXT, TURN_END
from stages.evaluation import bits, choice, conversations, generation, harness, preferences
from stages.evaluation.tokens import encode, token_id


def measure(name: str, model, tokenizer, data: dict, prompts: int, new_tokens: int) -> dict:
    """Bits, conversations, preferences, answers and tasks.

    Args:
        name: of the model, for the progress line.
        data: ``texts`` (dicts with text and source), ``chats`` (messages), ``pairs`` (prompt, chosen, rejected) and
            ``tasks`` (of :func:`stages.evaluation.harness.tasks`), all held out.
        prompts, new_tokens: how many conversations are answered greedily, and at what length.

    Returns:
        ``documents`` token ids of the texts, ``prefix``, ``vocabulary``, ``nats`` per text, ``loss`` and
        ``predictions`` (both None without conversations), ``pairs`` log-probabilities (pairs, 2), ``lengths``
        (pairs, 2), ``cut`` pairs, ``answers``, ``tasks`` and ``examples``.
    """
    prefix = token_id(tokenizer, END_OF_TEXT)
    documents = encode(tokenizer, [d["text"] for d in data["texts"]])
    pairs = [encode_pair(tokenizer, p, model.config.max_position_embeddings) for p in data["pairs"]]
    progress = Progress(f"bits per byte, {name}", sum(map(len, documents)), "tokens")
    nats = bits.document_nats(model, documents, prefix, progress.step)
    tasks, examples = harness.evaluate(model, tokenizer, prefix, data["tasks"])
    chats = data["chats"]
    loss, predictions = conversations.assistant_loss(model, tokenizer, chats) if chats else (None, None)
    return {
        "documents": documents,
        "prefix": prefix,
        "vocabulary": len(tokenizer),
        "nats": nats,
        "loss": loss,
        "predictions": predictions,
        "pairs": preferences.answer_logprobs(model, pairs),
        "lengths": preferences.answer_lengths(pairs),
        "cut": sum(p.cut for p in pairs),
        "answers": answers(model, tokenizer, chats, prompts, new_tokens),
        "tasks": tasks,
        "examples": examples,
    }


def answers(model, tokenizer, chats: list[list[dict]], prompts: int, new_tokens: int) -> list[dict]:
    """Greedy answers to the openings of ``prompts`` conversations: prompt, answer, whether it stopped by itself."""
    stop = token_id(tokenizer, TURN_END)
    openings = [conversations.opening(tokenizer, chat) for chat in chats]
    asked = choice.spread([ids for ids in openings if ids], prompts)
    generated = generation.greedy(model, asked, new_tokens, stop)
    return [
        {"prompt": tokenizer.decode(prompt), "answer": tokenizer.decode(tokens), "stopped": tokens[-1] == stop}
        for prompt, tokens in zip(asked, generated, strict=True)
    ]
