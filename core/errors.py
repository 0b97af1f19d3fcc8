"""Every error a person or an assistant is meant to read.

```
ResearcherError            problem + where it is + what to do about it
├── ConfigError            (ValueError)       a setting: file, line or key
├── DataError              (ValueError)       a row of somebody's data: file:line
├── ModelError             (LookupError)      a model, tokenizer or chat template that cannot be had
├── JobError               (RuntimeError)     a job that is missing or in the wrong state
├── BackendError           (ConnectionError)  Tinker, the engine or a cluster said no or did not answer
├── StorageError           (OSError)          disk full, not writable, half-written
└── MissingDependencyError (ImportError)      an optional extra is not installed
```

Any other exception that escapes is a bug of ours: it is logged with its traceback and shown as one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable


class ResearcherError(Exception):
    """What went wrong, where, and the way out, in one or two sentences a reader can act on.

    Args:
        problem: What was asked and what was found instead.
        where: The place, such as ``train.jsonl:17`` or ``sft.yaml: learning_rate``.
        fix: The next step: a command, a key, a value.
    """

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem = problem.rstrip(".")
        self.where = where
        self.fix = fix.rstrip(".")
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        way_out = f" {self.fix}{_stop(self.fix)}" if self.fix else ""
        return f"{place}{self.problem}{_stop(self.problem)}{way_out}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.problem, self.where, self.fix))


def _stop(sentence: str) -> str:
    return "" if sentence.endswith(("?", "!", ".")) else "."


def _rebuild(cls: type[ResearcherError], problem: str, where: str, fix: str) -> ResearcherError:
    return cls(problem, where=where, fix=fix)


class ConfigError(ResearcherError, ValueError):
    """A setting is unknown, malformed, out of range or contradicts another."""


class DataError(ResearcherError, ValueError):
    """A data file or one of its rows cannot be used."""


class ModelError(ResearcherError, LookupError):
    """A model, its config, its tokenizer or its chat template cannot be had."""


class JobError(ResearcherError, RuntimeError):
    """A job does not exist, or is in a state that forbids what was asked."""


class BackendError(ResearcherError, ConnectionError):
    """The training backend refused, failed or did not answer."""


class StorageError(ResearcherError, OSError):
    """A file or folder could not be read, written or created."""


class MissingDependencyError(ResearcherError, ImportError):
    """Something needs an optional extra that is not installed here."""


def did_you_mean(wrong: str, names: Iterable[str], *, cutoff: float = 70.0) -> str:
    """``Did you mean 'x'?`` for the closest name, or an empty string when nothing is close."""
    from rapidfuzz import fuzz, process  # 20 ms; only a mistake pays it

    closest = process.extractOne(wrong.lower(), list(names), scorer=fuzz.ratio, score_cutoff=cutoff)
    return f"Did you mean '{closest[0]}'?" if closest else ""
