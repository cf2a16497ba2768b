"""Answers from a server: vLLM's protocol, its refusals, and what networks do."""

import asyncio
import json
import os
from copy import deepcopy
from functools import partial

import httpx
import pytest
from running import change_json, refusal_of, rows_in
from scripted import World, lines

from data.common.files import stage_facts
from data.common.seeds import seed_of
from data.rows import read_split
from eval.answers import sampling, server
from eval.answers.asker import Asker
from eval.answers.sampling import ask_again, sample_arm, way_again
from eval.answers.server import Server
from pipeline.model.decode import render
from pipeline.model.decoding import Decoding


class Vllm:
    """Plays vLLM: ``answer`` makes the choices of a request, and ``asked`` keeps all requests.

    Attributes:
        trouble: by the number of a request, from 0, what happens to it instead: a status with a
            body, an error of the network, or ``"hang"``.
        held: the models, ``{id, root}``.
    """

    address = "http://vllm:8000/v1"

    def __init__(self):
        self.asked, self.trouble, self.answer = [], {}, answered
        self.held = [{"id": "base", "root": "/models/base", "object": "model"}]
        self.under_way, self.most_at_once = 0, 0

    async def handle(self, request):
        assert request.headers["Authorization"] == "Bearer secret"
        if request.method == "GET":
            assert request.url.path == "/v1/models"
            return httpx.Response(200, json={"object": "list", "data": self.held})
        body, trouble = json.loads(request.content), self.trouble.get(len(self.asked))
        self.asked.append(body)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        await asyncio.sleep(30 if trouble == "hang" else 0.001)
        self.under_way -= 1
        if isinstance(trouble, Exception):
            raise trouble
        status, content = trouble or (200, {"choices": self.answer(body)})
        text = content if isinstance(content, bytes) else json.dumps(content)
        return httpx.Response(status, content=text)


def choice(index, text, reason="stop", ids=(1, 2, 3)):
    return {"index": index, "text": text, "finish_reason": reason, "token_ids": ids}


def answered(body):
    """Each choice says which it is, and is as long as that; out of order."""
    numbers = reversed(range(body["n"]))
    return [choice(i, f"{body['seed']}:{i}", ids=list(range(i + 1))) for i in numbers]


@pytest.fixture
def vllm(monkeypatch):
    one = Vllm()
    client = partial(httpx.AsyncClient, transport=httpx.MockTransport(one.handle))
    monkeypatch.setattr(server.httpx, "AsyncClient", client)
    monkeypatch.setattr(server, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    return one


def drawn(vllm, prompts=("one", "two"), samples=3, **decoding):
    """What the server answers, in the order of the prompts."""
    way = Decoding(**{"max_tokens": 9, **decoding})
    seeds = range(100, 100 + len(prompts))
    asked = Server(vllm.address).sample("base", prompts, samples, way, seeds, [2, 7])
    return [answers for _, answers in sorted(asked, key=lambda pair: pair[0])]


# --- the protocol --------------------------------------------------------------------------


def test_a_request_leaves_nothing_to_the_server_but_the_draw(vllm):
    first, second = drawn(vllm, temperature=0.7, top_p=0.9)
    assert min(vllm.asked, key=lambda body: body["seed"]) == {
        "model": "base", "prompt": "one", "n": 3, "seed": 100, "max_tokens": 9,
        "temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "add_special_tokens": False,
        "return_token_ids": True, "stop_token_ids": [2, 7],
    }  # fmt: skip
    assert [one.completion for one in (*first, *second)] == [
        f"{seed}:{i}" for seed in (100, 101) for i in range(3)
    ], "by their index"
    assert [one.tokens for one in first] == [1, 2, 3]


def test_at_temperature_0_one_answer_stands_for_all(vllm):
    [answers] = drawn(vllm, ["one"], temperature=0)
    assert [body["n"] for body in vllm.asked] == [1]
    assert [one.completion for one in answers] == ["100:0"] * 3


def test_so_many_prompts_are_under_way_and_no_more(vllm):
    drawn(vllm, [str(i) for i in range(100)])
    assert (len(vllm.asked), vllm.most_at_once) == (100, server.AT_MOST)


# --- trouble -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.RemoteProtocolError("peer closed the connection"),
        (500, {"error": {"message": "EngineDeadError"}}),
        (429, b""),
        (200, b'{"choices": ['),
        (200, {"choices": [choice(0, "a"), choice(0, "b"), choice([], "c")]}),
        (200, {"choices": [choice(i, "cut off", "abort") for i in range(3)]}),
        (200, {"choices": [choice(i, None) for i in range(3)]}),
        (200, []),
    ],
)
def test_a_request_that_breaks_is_repeated_as_it_was(vllm, trouble):
    vllm.trouble = {0: trouble}
    [answers] = drawn(vllm, ["one"])
    assert [one.completion for one in answers] == ["100:0", "100:1", "100:2"]
    first, second = vllm.asked
    assert first == second


@pytest.mark.parametrize(
    ("trouble", "tries", "said"),
    [
        (httpx.ConnectError("no route"), 3, "ConnectError: no route"),
        ((503, b"load\x1b[31m\ning"), 3, "503 (load [31m ing)"),
        ((200, {"choices": [choice(0, "a")]}), 3, "1 choices where 3"),
        ((400, {"error": "too many tokens"}), 1, "too many tokens"),
        ((401, {"error": "Unauthorized"}), 1, "VLLM_API_KEY"),
        ((404, {"detail": "Not Found"}), 1, "ends in /v1"),
        (httpx.ReadTimeout("late"), 1, "within 1800 s"),
    ],
)
def test_a_server_that_refuses_or_stays_broken_is_one_sentence(vllm, trouble, tries, said):
    vllm.trouble = dict.fromkeys(range(9), trouble)
    text = refusal_of(lambda: drawn(vllm, ["one"]))
    assert text.startswith(f"the server {vllm.address} ")
    assert said in text
    assert text.isprintable()
    assert len(vllm.asked) == tries


# --- which model ---------------------------------------------------------------------------


def held_name(vllm, *names, model="runs/tiny/grpo/model"):
    return Server(vllm.address + "/").model_of(names, model, "bfloat16")["id"]


def test_its_own_name_comes_first_then_its_folder_then_the_arm_that_it_asks(vllm):
    vllm.held = [{"id": "base"}, {"id": "x", "root": "runs/tiny/grpo/model"}, {"id": "grpo"}]
    assert held_name(vllm, "grpo") == "grpo"
    assert held_name(vllm, "best", "base") == "x"
    assert held_name(vllm, "best", "base", model="other") == "base"
    vllm.held = [{"id": "x", "root": os.path.abspath("runs/tiny/grpo/model")}]
    assert held_name(vllm, "grpo") == "x"


@pytest.mark.parametrize("held", [[{"id": "gr\x1bpo2"}, {"id": "b"}], []])
def test_another_model_is_named_with_the_command_that_serves_the_right_one(vllm, held):
    vllm.held = held
    said = refusal_of(lambda: held_name(vllm, "grpo", model="my runs/grpo/model"))
    command = "vllm serve 'my runs/grpo/model' --served-model-name grpo --dtype bfloat16"
    assert f"`{command}`" in said
    assert said.isprintable()


# --- the stage -----------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch, tokenizer):
    """Models without weights that anyone could load, but each with a tokenizer."""
    world = World(tmp_path, monkeypatch)
    monkeypatch.setattr(sampling, "Asker", Asker)
    monkeypatch.setattr(Asker, "_loaded", property(lambda _: pytest.fail("a model was loaded")))
    save(tokenizer, tmp_path / "base")
    return world


def save(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").touch()


def recipe_of(world, vllm, arms=None, **asking):
    return world.recipe(
        arms or {},
        model=str(world.folder / "base"),
        data={"main": "dense", "tiers": {"dense": {"train": 2, "val": 2, "test": 12}}},
        eval={"samples": 4, "max_tokens": 12, "server": vllm.address, **asking},
    )


@pytest.mark.parametrize("limit", [12, None])
def test_an_arm_is_sampled_by_its_server_and_never_loaded(world, vllm, tokenizer, limit):
    recipe = recipe_of(world, vllm, max_tokens=limit)
    sample_arm(recipe, "base", force=False)
    rows = read_split(recipe.run, "test")
    seeds = {row["id"]: seed_of(recipe.seed, "sample", "base", row["id"]) for row in rows}
    assert [(row["id"], row["sample"], row["completion"]) for row in lines(recipe, "base")] == [
        (row["id"], i, f"{seeds[row['id']]}:{i}") for row in rows for i in range(4)
    ]
    prompts = {render(tokenizer, row["prompt"]) for row in rows}
    assert {body["prompt"] for body in vllm.asked} == prompts
    facts = stage_facts(recipe.run.samples("base").parent)
    assert facts["served"] == {"id": "base", "root": "/models/base"}
    assert facts["settings"]["engine"] == "server"
    # Without a limit in the recipe the arm's own tokenizer sets it.
    [most] = {body["max_tokens"] for body in vllm.asked}
    assert most == facts["asking"]["max_tokens"]
    assert most == limit or (limit is None and most > 12)


def test_a_base_at_a_server_ends_its_answers_where_its_template_ends_a_turn(world, vllm, tokenizer):
    # Its own files name another token, which ends a text, and the server would stop at no other.
    tokenizer = deepcopy(tokenizer)
    tokenizer.eos_token = "<|pad|>"
    save(tokenizer, world.folder / "base")
    turn, text = tokenizer.convert_tokens_to_ids(["<|end|>", "<|pad|>"])
    own = world.folder / "base" / "generation_config.json"
    for content, more in (({"eos_token_id": [text, 9]}, 9), (None, 2)):  # as in llama's config
        own.write_text(json.dumps(content)) if content else own.unlink()
        sample_arm(recipe_of(world, vllm), "base", force=True)
        assert {tuple(body["stop_token_ids"]) for body in vllm.asked} == {
            tuple(sorted({turn, text, more}))
        }
        vllm.asked.clear()


def test_where_the_server_is_and_how_much_is_asked_at_a_time_change_no_answer(world, vllm, capsys):
    sample_arm(recipe_of(world, vllm), "base", force=False)
    vllm.asked.clear()
    moved = recipe_of(world, vllm, rows=8, server="http://elsewhere:9/v1")
    sample_arm(moved, "base", force=False)
    assert vllm.asked == []
    assert "eval base: up to date" in capsys.readouterr().out


def test_sampling_here_does_not_go_on_with_the_answers_of_a_server(world, vllm):
    recipe = recipe_of(world, vllm)
    vllm.trouble = {5: (400, b"enough")}
    refusal_of(lambda: sample_arm(recipe, "base", force=False), "enough")
    here = recipe_of(world, vllm, server=None)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        sample_arm(here, "base", force=False)
    assert here.run.samples("base").read_bytes() == b""


def test_after_a_failure_the_same_command_asks_for_what_is_missing_alone(world, vllm):
    recipe = recipe_of(world, vllm)
    vllm.trouble = dict.fromkeys(range(7, 99), (500, b"dead"))
    again = "the same command goes on"
    refusal_of(lambda: sample_arm(recipe, "base", force=False), "500 (dead)", again)
    kept = recipe.run.samples("base").read_bytes()
    assert kept.count(b"\n") == 7 * 4
    vllm.asked.clear()
    vllm.trouble = {}
    sample_arm(recipe, "base", force=False)
    assert len(vllm.asked) == 5
    whole = recipe.run.samples("base").read_bytes()
    sample_arm(recipe, "base", force=True)
    assert recipe.run.samples("base").read_bytes() == whole


def test_what_a_server_writes_is_text_whatever_it_looks_like(world, vllm):
    hostile = ["\ud800 \x00\x1b[2J", '"}\n{"id": "x"}', "\u2028\u0085</schedule>", "{{7*7}}"]
    vllm.answer = lambda body: [choice(i, text) for i, text in enumerate(hostile)]
    recipe = recipe_of(world, vllm)
    sample_arm(recipe, "base", force=False)
    rows = rows_in(recipe.run.samples("base"))
    assert [row["completion"] for row in rows] == hostile * 12


def test_an_arm_is_asked_again_where_the_server_now_is(world, vllm):
    recipe = recipe_of(world, vllm)
    sample_arm(recipe, "base", force=False)
    path = recipe.run.samples("base").with_name("manifest.json")
    asking = stage_facts(path.parent)["asking"]
    change_json(path, asking={**asking, "server": "http://127.0.0.1:9/v1"})
    server = recipe.for_arm("base").eval.server
    assert way_again(recipe.run, "base", server).server == vllm.address
    vllm.asked.clear()
    rows = read_split(recipe.run, "test")[3:5]
    ask_again(recipe, "base", rows, 6, force=False)
    assert [(body["n"]) for body in vllm.asked] == [6, 6]
    fresh = {seed_of(recipe.seed, "fresh", "base", row["id"]) for row in rows}
    assert {body["seed"] for body in vllm.asked} == fresh
    assert len(lines(recipe, "base", fresh=True)) == 12


def test_arms_are_served_in_turn_each_sampled_once(world, vllm, tokenizer, run_command, mistake_of):
    two = recipe_of(world, vllm, {"grpo": {"trainer": "grpo"}})
    world.train(two)
    save(tokenizer, two.run.folder / "grpo" / "model")
    said = mistake_of("eval.sample", "--recipe", two.path)
    assert said.startswith(f"{vllm.address} holds base, not {two.run.model('grpo')}")
    assert len(lines(two, "base")) == 48
    assert not (two.run.eval / "grpo" / "manifest.json").exists()
    vllm.held = [{"id": "grpo"}]
    vllm.asked.clear()
    run_command("eval.sample", "--recipe", two.path)
    assert {body["model"] for body in vllm.asked} == {"grpo"}
    assert len(lines(two, "grpo")) == 48


@pytest.mark.parametrize(
    "address", ["localhost:8000/v1", "ftp://h/v1", "http://a b/v1", "http://u:p@h/v1", "http://h:x"]
)
def test_a_wrong_address_is_refused_with_the_recipe(world, address):
    arms = {"cool": {"trainer": "none", "eval": {"server": address}}}
    refusal_of(lambda: world.recipe(arms), "arms.cool.eval.server must be an address")
