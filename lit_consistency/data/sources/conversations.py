"""Rows of any common kind, normalised to a conversation.

The format is detected by the fields of the row itself, in the order of ``FORMATS``, so one file may mix formats. A
column map (``columns``) names the fields of any other. Nothing of a row is lost without a word: a field is a turn of
the conversation, or part of one, or it is named in ``unused``, which is counted and said. A row that does not fit is an
error that names its file and line; none is skipped.

Sources: ``context`` is Dolly's (https://huggingface.co/datasets/databricks/databricks-dolly-15k), ``history`` is read,
and learned, as in https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md, lists of turns as ``prompt`` and
``completion`` are TRL's (https://huggingface.co/docs/trl/dataset_formats), which learns the completion alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lit_consistency.data.sources.files import take_text
from lit_consistency.data.sources.turns import REASONING, Messages, is_empty, read_tools, read_turns

TURNS = ("messages", "conversations", "conversation")
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),  # MetaMathQA
    ("problem", "solution"),  # Magicoder, MATH
    ("question", "answer"),
    ("question", "response"),  # OpenOrca
    ("inputs", "targets"),  # Flan
    ("input", "output"),
)
FORMATS = (*TURNS, *("/".join(pair) for pair in PAIRS), "text")

# fields beside those: part of the first turn, before the others, or of the answer
SYSTEMS = ("system", "system_prompt")
EXTRAS = ("context", "input")

IDS = ("id", "_id", "uuid", "idx", "row_id", "prompt_id", "question_id", "task_id")
"""A row's own name, by which ``predict`` calls it; nothing of it is learned."""

COLUMNS = ("messages", "prompt", "completion", "text", "system", "input", "history", "reasoning_content", "tools", "id")
READING = 2
"""Raised when the same rows are read as other conversations, so that tokens of an earlier reading are not taken."""


class Conversation(NamedTuple):
    """One conversation.

    Attributes:
        messages: Turns with ``role`` (system, user, assistant, tool) and ``content``, and more where the row has it
            (see ``turns.py``); at least one is the assistant's.
        place: Where the row stands, ``file:line`` or ``world:index``, for messages to the user.
        tools: What the assistant may call, for chat templates, or None.
        plain: Whether the row is a plain text: one turn of the assistant, to be learned as it stands, in no format.
        format: As what the row was read.
        used: The row's fields that were read.
        unused: Those that were not, and say something.
        id: The row's own name, where it has one.
    """

    messages: Messages
    place: str
    tools: list[dict[str, Any]] | None = None
    plain: bool = False
    format: str = ""
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    id: str | int | None = None


def check_columns(columns: Mapping[str, str] | None) -> None:
    """ValueError unless a column map names what a conversation needs, and nothing unknown."""
    if columns is None:
        return
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"columns: {unknown[0]}: expected names among {', '.join(COLUMNS)}")
    whole = [kind for kind in ("messages", "text") if kind in columns]
    pair = [name for name in ("prompt", "completion") if name in columns]
    if len(whole) + bool(pair) != 1 or len(pair) == 1:
        raise ValueError(f"columns = {dict(columns)}: expected prompt and completion, or messages, or text")


def conversation_of(row: Any, place: str, columns: Mapping[str, str] | None = None) -> Conversation:
    """The conversation of a row.

    Args:
        row: One value of a file, an object with the fields of one of ``FORMATS``.
        place: Where it stands, ``file:line``, for errors.
        columns: Names of ``COLUMNS`` -> the row's fields, which alone are read then; None detects them.

    Returns:
        At least one turn is the assistant's, and none that is learned is empty.

    Raises:
        ValueError: A field is missing or of the wrong type, a role is unknown, a completion is empty, no turn is the
            assistant's.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a {type(row).__name__}; expected an object with the fields of {'; '.join(FORMATS)}")
    # Parquet files hold every column of every format; those that a row does not use are null
    fields = {key: value for key, value in row.items() if value is not None}
    names = {name: name for name in fields}
    if columns is not None:
        _check_mapped(columns, row, place)
        names = {name: column for name, column in columns.items() if column in fields}
        fields = {name: fields[column] for name, column in names.items()}
    reader = _RowReader(fields, place, [name for name, value in row.items() if value is None])
    messages = [turn for turn in reader.messages() if turn["role"] != "system" or turn["content"].strip()]
    _check_turns(messages, place)
    used = {names[name] for name in reader.used}
    own_name = next((name for name in IDS if _is_name(fields.get(name))), None)
    if own_name is not None:
        used.add(names[own_name])
    unused = {name for name in row if name not in used and not is_empty(row[name])} | reader.unused
    form = reader.format if columns is None else ", ".join(f"{name}: {column}" for name, column in columns.items())
    order = list(row)
    return Conversation(
        messages,
        place,
        reader.tools,
        reader.format == "text",
        form,
        tuple(sorted(used, key=order.index)),
        tuple(sorted(unused)),
        None if own_name is None else fields[own_name],
    )


def held_out_by(messages: Messages) -> str:
    """The text that decides whether a conversation is held out: its turns up to the first answer.

    Several answers to one question have it in common, also where the question is spaced otherwise. A conversation
    without a question, which the assistant begins, is told from others by all of its turns.
    """
    first_answer = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    prompt = messages[:first_answer]
    asked = any(message["role"] == "user" and message["content"].strip() for message in prompt)
    turns = [(message["role"], " ".join(message["content"].split())) for message in (prompt if asked else messages)]
    return "\x1e".join(f"{role}\x1f{content}" for role, content in turns)


class DetectedFormat(NamedTuple):
    """What rows were read as.

    Attributes:
        format: One of ``FORMATS``, or the column map.
        n_rows: How many rows have it.
        used: The fields that were read.
        unused: Field -> number of rows in which it says something and was not read.
    """

    format: str
    n_rows: int
    used: tuple[str, ...]
    unused: dict[str, int]

    def __str__(self) -> str:
        text = f"{self.format} ({self.n_rows:,} rows); used: {', '.join(self.used) or 'none'}"
        return f"{text}; not used: {say_counts(self.unused)}" if self.unused else text


def detected_formats(rows: Iterable[Conversation]) -> list[DetectedFormat]:
    """The formats that occur among rows, the most frequent first; rows of a world or a task have the format ``""``."""
    n_rows: Counter[str] = Counter()
    used: defaultdict[str, dict[str, None]] = defaultdict(dict)
    unused: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        n_rows[row.format] += 1
        used[row.format] |= dict.fromkeys(row.used)
        unused[row.format].update(row.unused)
    return [DetectedFormat(form, n, tuple(used[form]), dict(unused[form])) for form, n in n_rows.most_common()]


def say_counts(fields: Mapping[str, int]) -> str:
    """Fields with the number of rows that have them, as ``category (15,011 rows), id (3 rows)``."""
    return ", ".join(f"{name} ({n:,} row{'s' * (n != 1)})" for name, n in sorted(fields.items()))


class _RowReader:
    """Reads a row's fields, and keeps which: ``format``, ``used``, ``unused`` (fields of its turns), ``tools``."""

    def __init__(self, fields: dict[str, Any], place: str, null: Sequence[str] = ()) -> None:
        self.fields = fields
        self.place = place
        self.null = null
        self.format = ""
        self.used: set[str] = set()
        self.unused: set[str] = set()
        self.tools: list[dict[str, Any]] | None = None

    def messages(self) -> Messages:
        """All turns."""
        pair = next((pair for pair in PAIRS if self.fields.keys() >= set(pair)), None)
        if name := next((name for name in TURNS if name in self.fields), None):
            self.format = name
            messages = self._turns(name)
        elif pair is not None:
            self.format = "/".join(pair)
            messages = self._pair(*pair)
        elif "text" in self.fields:
            self.format = "text"
            return [{"role": "assistant", "content": self._text("text")}]
        else:
            names = ", ".join(map(repr, self.fields)) or "none"
            null = f" (null: {', '.join(map(repr, self.null))})" if self.null else ""
            raise ValueError(
                f"{self.place}: fields {names}{null}; expected those of {'; '.join(FORMATS)}, "
                "or `columns` that name yours"
            )
        if "tools" in self.fields:
            self.tools = read_tools(self.fields["tools"], self.place)
            self.used.add("tools")
        return self._with_system(messages)

    def _pair(self, prompt: str, completion: str) -> Messages:
        """Earlier turns, the question with what belongs to it, the answer."""
        extras = [name for name in EXTRAS if name != prompt and not is_empty(self.fields.get(name))]
        if isinstance(self.fields[prompt], list):
            if extras:
                raise ValueError(f"{self.place}: {extras[0]} beside a {prompt} of turns; expected a {prompt} of text")
            question = [{"learned": False, **turn} if _is_answer(turn) else turn for turn in self._turns(prompt)]
        else:
            question = [{"role": "user", "content": self._text(prompt)}]
            if extras:
                extra = "\n\n".join(self._text(name) for name in extras)
                instruction = question[0]["content"]
                content = f"{instruction}\n\n{extra}"
                question = [{"role": "user", "content": content, "instruction": instruction, "input": extra}]
        if isinstance(self.fields[completion], list):
            return [*self._history(), *question, *self._turns(completion)]
        answer = {"role": "assistant", "content": self._text(completion)}
        if thought := next((name for name in REASONING if not is_empty(self.fields.get(name))), None):
            answer["reasoning_content"] = self._text(thought)
        return [*self._history(), *question, answer]

    def _history(self) -> Messages:
        """Earlier turns: pairs of a question and its answer."""
        history = self.fields.get("history")
        if is_empty(history):
            return []
        self.used.add("history")
        messages: Messages = []
        for number, pair in enumerate(history if isinstance(history, list) else [history], start=1):
            place = f"{self.place}: history, pair {number}"
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise ValueError(f"{place}: {pair!r:.80}; expected a list of a question and its answer")
            asked, answered = (take_text({name: text}, name, place) for name, text in zip("qa", pair, strict=True))
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return messages

    def _with_system(self, messages: Messages) -> Messages:
        name = next((name for name in SYSTEMS if not is_empty(self.fields.get(name))), None)
        if name is None:
            return messages
        system = {"role": "system", "content": self._text(name)}
        if messages[0]["role"] != "system":
            return [system, *messages]
        if messages[0]["content"] != system["content"]:
            raise ValueError(
                f"{self.place}: {name} = {system['content']!r:.60} and another system turn; expected one of them, or "
                "`columns` that leave one out"
            )
        return messages

    def _turns(self, name: str) -> Messages:
        self.used.add(name)
        return read_turns(self.fields[name], name, self.place, self.unused)

    def _text(self, name: str) -> str:
        self.used.add(name)
        return take_text(self.fields, name, self.place)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and value != ""


def _is_answer(turn: dict[str, Any]) -> bool:
    return turn["role"] == "assistant"


def _check_mapped(columns: Mapping[str, str], row: dict[str, Any], place: str) -> None:
    for name in ("messages", "text", "prompt", "completion"):
        if name in columns and row.get(columns[name]) is None:
            has = ", ".join(map(repr, row)) or "no fields"
            raise ValueError(f"{place}: no field {columns[name]!r}, which columns.{name} names; it has {has}")


def _check_turns(messages: Messages, place: str) -> None:
    if not any(_is_answer(message) for message in messages):
        raise ValueError(f"{place}: no turn of the assistant; expected at least one, there is nothing to learn")
    for number, message in enumerate(messages, start=1):
        says = message["content"].strip() or message.get("tool_calls") or message.get("learned") is False
        if _is_answer(message) and not says:
            raise ValueError(f"{place}: turn {number}: the completion is empty; expected text")
        if message["role"] == "system" and number > 1:
            raise ValueError(f"{place}: turn {number}: a system turn; expected it only as the first")
