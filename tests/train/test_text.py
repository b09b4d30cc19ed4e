"""A speaker's answers: several at once, as they come, ended by texts, chosen among texts."""

from typing import Any

import pytest

from model.generation.picking import Sampling
from model.layers import initialize
from model.semicausal import SemiCausal
from tests.corpora import WORDS, write_tokenizer
from tests.train.test_prompt import MODEL
from train.asked import Asked
from train.errors import UserError
from train.text import Speaker, Speech


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    path = tmp_path_factory.mktemp("speaker") / "tokenizer.json"
    write_tokenizer(path)
    model = SemiCausal(MODEL).eval()
    initialize(model, seed=1)
    return Speaker(model, path)


HOT = Sampling(temperature=1.0, top_p=1.0, seed=4)
PROMPTS = ["a [[b c]] d", f"{WORDS[:30]} [[{WORDS[:9]}]] x [[y]]", "", "e"]


def asked(prompt: str | list[int], **options: Any) -> Asked:
    settings: dict[str, Any] = {"max_new_tokens": 20, "sampling": HOT} | options
    return Asked(prompt=prompt, **settings)


def test_answers_are_those_of_each_alone(speaker: Speaker) -> None:
    together = speaker.complete([asked(prompt) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, together, strict=True):
        alone = speaker.complete([asked(prompt)])[0]
        assert (answer.text, answer.ending) == (alone.text, alone.ending)
        assert answer.text == "".join(speaker.stream(asked(prompt)))
    assert len({answer.text for answer in together}) == len(PROMPTS)


def test_tokens_are_a_prompt_too(speaker: Speaker) -> None:
    text = "a b c"
    tokens = speaker.prompt(text).tokens
    assert speaker.complete([asked(tokens)])[0].text == speaker.complete([asked(text)])[0].text


def test_a_stop_string_ends_an_answer_and_gives_its_place_away(speaker: Speaker) -> None:
    free = speaker.complete([asked(prompt) for prompt in PROMPTS])
    stop = free[0].text[6:8]
    speech = Speech(speaker)
    answers = speech.admit([asked(PROMPTS[0], stop=("\x00", stop)), asked(PROMPTS[1])])
    while answers[0].ending is None:
        speech.step()
    assert speech.answers == [answers[1]]
    while speech.step():
        pass
    assert answers[0].ending == "stop"
    assert answers[0].text == free[0].text[: free[0].text.index(stop)]
    assert len(answers[0].tokens) < len(free[0].tokens)
    assert answers[1].text == free[1].text
    pieces = "".join(speaker.stream(asked(PROMPTS[0], stop=(stop,))))
    assert pieces == answers[0].text


def test_an_answer_is_one_of_the_choices(speaker: Speaker) -> None:
    choices = (" b", " b c", "d")
    told = {
        speaker.complete(
            [
                asked(
                    "a",
                    choices=choices,
                    sampling=Sampling(temperature=9.0, top_p=1.0, seed=seed),
                )
            ]
        )[0].text
        for seed in range(40)
    }
    assert told == set(choices)
    with pytest.raises(UserError, match="choices: two choices are the same"):
        speaker.complete([asked("a", choices=("b", "b"))])


def test_beam_search_of_one_beam_is_greedy(speaker: Speaker) -> None:
    greedy = [asked(prompt, sampling=Sampling()) for prompt in PROMPTS]
    wanted = [answer.text for answer in speaker.complete(greedy)]
    assert speaker.search(PROMPTS, max_new_tokens=20, num_beams=1, length_penalty=0.0) == wanted


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ([], "the prompt has no tokens"),
        ([5] * 65, "has 65 tokens, the model reads 64"),
        ([5, 300], "tokens outside of the vocabulary of 300"),
        ([5, -1], "tokens outside of the vocabulary of 300"),
        ("[[" + "a " * 40 + "]]", "a span of the prompt exceeds the encoder's 33 tokens"),
        ("a [[b", r"is not closed \(line 1, character 3\)"),
    ],
)
def test_prompts_that_cannot_be_read(speaker: Speaker, prompt: str | list[int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        speaker.complete([asked("a"), asked(prompt)])
