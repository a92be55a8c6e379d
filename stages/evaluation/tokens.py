"""Token ids as evaluation needs them."""

from stages.contract import UserError


def token_id(tokenizer, token: str) -> int:
    """The id of a special token. Raises UserError if the tokenizer lacks it."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no token {token}.")
    return found


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, with nothing added before or after. A special token's name in a text is text."""
    # verbose: no warning about texts longer than the context, which are cut into windows later.
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(texts, **options)["input_ids"] if texts else []
