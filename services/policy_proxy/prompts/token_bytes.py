"""Owns the bytes that tokens of a byte-level BPE (GPT-2's scheme: Qwen, Llama 3, DeepSeek) stand for, and so the text of generated ids.

Every call needs it for all that was said, and joining known bytes takes a fifth of what the tokenizer takes. Refuses tokenizers with
another decoder: their text is the tokenizer's own affair.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders


class TokenBytes(dict[int, bytes]):
    """Token id to bytes, learnt as they are asked for; a token may be a part of a character. Empty for ids that are no token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._byte_of = byte_level_alphabet()

    def __missing__(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token) or ""
        try:
            found = bytes([self._byte_of[char] for char in text])
        except KeyError:
            # Added tokens are written as they are, other tokens in the byte-level alphabet.
            found = text.encode()
        self[token] = found
        return found

    def text(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, special tokens included; U+FFFD for bytes that are no character."""
        return b"".join(map(self.__getitem__, ids)).decode(errors="replace")


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts texts together as `TokenBytes` does."""
    return isinstance(tokenizer.decoder, decoders.ByteLevel)


def byte_level_alphabet() -> dict[str, int]:
    """The character that byte-level BPE (GPT-2) writes for each byte: itself where it is printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(others)}
