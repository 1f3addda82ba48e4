"""The section of the cache: what frozen layers have computed, and the tokens of texts."""

from typing import Any, Literal

from pydantic import field_validator

from ftkit.config.section import Section
from ftkit.errors import ConfigError
from ftkit.units import parse_bytes


class CacheConfig(Section):
    """What is computed once and kept: tokens, and what the frozen layers below all that trains make of them."""

    trunk: Literal["auto", "on", "off"] = "auto"
    """`auto`: compute the frozen layers once where some are below all that trains and the data is gone through more
    than once, and where the model's structure allows it; `on`: or else refuse; `off`: run them in each step."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """What is kept; `auto`: the precision of the run, which loses nothing; `int8` says how much it has lost."""
    limit: str = "20GiB"
    """What the cache may hold of hidden states, and of tokens, and of packed layers beside the run's own, such as
    `20GiB`; what was not used for longest makes room."""
    tokens: bool = True
    """Keep the tokens of texts, so that the same texts are not tokenized again."""

    @field_validator("trunk", mode="before")
    @classmethod
    def _is_switch(cls, given: Any) -> Any:
        """YAML reads the words `on` and `off` as true and false."""
        return {True: "on", False: "off"}[given] if isinstance(given, bool) else given

    @field_validator("limit", mode="before")
    @classmethod
    def _is_size(cls, given: Any) -> str:
        try:
            parse_bytes(str(given))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return str(given)

    @property
    def limit_bytes(self) -> int:
        """The limit in bytes."""
        return parse_bytes(self.limit)
