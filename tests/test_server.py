"""Answers from a server, over real HTTP: vLLM's protocol, its refusals, and what networks do."""

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scripted import World, lines

from data.common.errors import UserError, run_main
from data.common.files import read_jsonl, to_line
from data.common.seeds import seed_of
from data.rows import read_split
from eval import sample
from eval.answers import sampling, server
from eval.answers.asker import Asker
from eval.answers.sampling import ask_again, sample_arm
from eval.answers.server import NotServedError, Server
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.decode import Decoding, render


class Vllm(ThreadingHTTPServer):
    """Plays vLLM: ``answer`` makes the choices of a request, and ``asked`` keeps all requests.

    Attributes:
        trouble: by the number of a request, from 0, what happens to it instead: a status with a
            body, ``"drop"`` (the connection ends amid the answer), or ``"hang"``.
        held: the models, ``{id, root}``.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.trouble = [], {}
        self.held = [{"id": "base", "root": "/models/base", "object": "model"}]
        self.key, self.under_way, self.most_at_once, self.delay = None, 0, 0, 0.0
        self.answer, self.lock, self.free = answered, threading.Lock(), threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_):
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def say(self, status, body, length=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self.say(401, {"error": "Unauthorized"})
        elif self.path != "/v1/models":
            self.say(404, {"detail": "Not Found"})
        else:
            self.say(200, {"object": "list", "data": self.server.held})

    def do_POST(self):
        body, server = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server
        with server.lock:
            trouble = server.trouble.get(len(server.asked))
            server.asked.append(body)
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
        time.sleep(server.delay)
        if trouble == "hang":
            server.free.wait(30)
        elif trouble == "drop":
            self.say(200, b'{"choices": [', length=1000)
            self.close_connection = True
        else:
            self.say(*(trouble or (200, {"choices": server.answer(body)})))
        with server.lock:
            server.under_way -= 1


def choice(index, text, reason="stop", ids=(1, 2, 3)):
    return {"index": index, "text": text, "finish_reason": reason, "token_ids": ids}


def answered(body):
    """Each choice says which it is, and is as long as that; out of order."""
    numbers = reversed(range(body["n"]))
    return [choice(i, f"{body['seed']}:{i}", ids=list(range(i + 1))) for i in numbers]


@contextmanager
def playing():
    with Vllm() as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield one
        finally:
            one.free.set()
            one.shutdown()
            thread.join()


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(server, "WAITS", (0.01, 0.01))
    with playing() as one:
        yield one


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def drawn(vllm, tokenizer, prompts=("one", "two"), samples=3, at_once=2, **decoding):
    """What the server answers, in the order of the prompts."""
    way = Decoding(**{"max_tokens": 9, **decoding})
    seeds = range(100, 100 + len(prompts))
    asked = Server(vllm.address).sample("base", tokenizer, prompts, samples, way, seeds, at_once)
    return [answers for _, answers in sorted(asked, key=lambda pair: pair[0])]


# --- the protocol --------------------------------------------------------------------------


def test_a_request_leaves_nothing_to_the_server_but_the_draw(vllm, tokenizer):
    drawn(vllm, tokenizer, temperature=0.7, top_p=0.9)
    first = min(vllm.asked, key=lambda body: body["seed"])
    assert first == {
        "model": "base",
        "prompt": "one",
        "n": 3,
        "seed": 100,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "add_special_tokens": False,
        "return_token_ids": True,
    }


def test_choices_come_back_by_their_index_with_their_tokens(vllm, tokenizer):
    first, second = drawn(vllm, tokenizer)
    assert [one.completion for one in (*first, *second)] == [
        f"{seed}:{i}" for seed in (100, 101) for i in range(3)
    ]
    assert [one.tokens for one in first] == [1, 2, 3]


@pytest.mark.parametrize(("reason", "end"), [("stop", 1), ("length", 0)])
def test_tokens_are_counted_where_the_server_does_not_say_them(vllm, tokenizer, reason, end):
    vllm.answer = lambda body: [choice(i, "Zoo visit", reason, None) for i in range(body["n"])]
    count = len(tokenizer("Zoo visit", add_special_tokens=False)["input_ids"])
    [answers] = drawn(vllm, tokenizer, ["one"])
    assert {(one.finish_reason, one.tokens) for one in answers} == {(reason, count + end)}


def test_at_temperature_0_one_answer_stands_for_all(vllm, tokenizer):
    [answers] = drawn(vllm, tokenizer, ["one"], temperature=0)
    assert [body["n"] for body in vllm.asked] == [1]
    assert [one.completion for one in answers] == ["100:0"] * 3


def test_so_many_prompts_are_under_way_and_no_more(vllm, tokenizer):
    vllm.delay = 0.05
    drawn(vllm, tokenizer, [str(i) for i in range(12)], at_once=4)
    assert (len(vllm.asked), vllm.most_at_once) == (12, 4)


def test_answers_are_given_as_they_come(vllm, tokenizer):
    vllm.trouble = {0: "hang"}  # the request that comes first, of two that race
    found = Server(vllm.address).sample(
        "base", tokenizer, ["one", "two", "three"], 2, Decoding(9), [1, 2, 3], 2
    )
    with closing(found):
        assert len({next(found)[0], next(found)[0]}) == 2


# --- trouble -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        "drop",
        (500, {"error": {"message": "EngineDeadError"}}),
        (429, b""),
        (200, b'{"choices": ['),
        (200, b"\xff\xfe"),
        (200, {"choices": [choice(0, "alone")]}),
        (200, {"choices": [choice(0, "a"), choice(0, "b"), choice([], "c")]}),
        (200, {"choices": [choice(i, "cut off", "abort") for i in range(3)]}),
        (200, {"choices": [choice(i, None) for i in range(3)]}),
        (200, {"choices": [1, 2, 3]}),
        (200, []),
    ],
)
def test_a_request_that_breaks_is_repeated_as_it_was(vllm, tokenizer, trouble):
    vllm.trouble = {0: trouble}
    [answers] = drawn(vllm, tokenizer, ["one"])
    assert [one.completion for one in answers] == ["100:0", "100:1", "100:2"]
    first, second = vllm.asked
    assert first == second


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("drop", "RemoteProtocolError"),
        ((503, b"load\x1b[31m\ning"), "503 (load [31m ing)"),
        ((200, {}), "no choices"),
        ((200, {"choices": [choice(0, "a")]}), "1 choices where 3"),
    ],
)
def test_a_server_that_stays_broken_ends_the_sampling_with_one_sentence(
    vllm, tokenizer, trouble, said
):
    vllm.trouble = dict.fromkeys(range(9), trouble)
    with pytest.raises(UserError) as raised:
        drawn(vllm, tokenizer, ["one"])
    text = str(raised.value)
    assert vllm.address in text
    assert said in text
    assert text.endswith("the same command goes on")
    assert text.isprintable()
    assert len(vllm.asked) == 3


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ((400, {"error": {"message": "too many tokens"}}), r"refuses .* 400 .*too many tokens"),
        ("hang", r"within 0\.2 s"),
    ],
)
def test_a_refusal_and_a_long_wait_are_said_and_not_repeated(
    vllm, tokenizer, monkeypatch, trouble, said
):
    monkeypatch.setattr(server, "ANSWER", 0.2)
    vllm.trouble = {0: trouble}
    with pytest.raises(UserError, match=said):
        drawn(vllm, tokenizer, ["one"])
    assert len(vllm.asked) == 1


def test_an_address_without_a_server_is_one_sentence(vllm):
    vllm.server_close()
    with pytest.raises(UserError, match=rf"^the server {vllm.address} .*ConnectError"):
        Server(vllm.address).model_of(["base"], "x", "float32")


# --- which model ---------------------------------------------------------------------------


def held_name(vllm, *names, model="runs/tiny/grpo/model"):
    return Server(vllm.address + "/").model_of(names, model, "bfloat16")["id"]


@pytest.mark.parametrize(
    "held",
    [
        {"id": "grpo", "root": "/elsewhere"},
        {"id": "runs/tiny/grpo/model"},
        {"id": "x", "root": os.path.abspath("runs/tiny/grpo/model")},
    ],
)
def test_an_arms_model_is_known_by_the_arms_name_or_by_its_folder(vllm, held):
    vllm.held = [{"id": "other", "root": "/other"}, held]
    assert held_name(vllm, "grpo") == held["id"]


def test_its_own_name_comes_first_then_its_folder_then_the_arm_that_it_asks(vllm):
    vllm.held = [{"id": "base"}, {"id": "x", "root": "runs/tiny/grpo/model"}, {"id": "grpo"}]
    assert held_name(vllm, "grpo") == "grpo"
    assert held_name(vllm, "best", "base") == "x"
    assert held_name(vllm, "best", "base", model="other") == "base"


@pytest.mark.parametrize("held", [[{"id": "gr\x1bpo2"}, {"id": "b"}], []])
def test_another_model_is_named_with_the_command_that_serves_the_right_one(vllm, held):
    vllm.held = held
    with pytest.raises(NotServedError) as raised:
        held_name(vllm, "grpo", model="my runs/grpo/model")
    command = "vllm serve 'my runs/grpo/model' --served-model-name grpo --dtype bfloat16"
    assert f"`{command}`" in str(raised.value)
    assert str(raised.value).isprintable()


def test_the_key_of_the_environment_is_shown_to_the_server(vllm, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    vllm.key = "secret"
    with pytest.raises(UserError, match=r"401 .*VLLM_API_KEY"):
        held_name(vllm, "base")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert held_name(vllm, "base") == "base"


def test_an_address_without_its_path_is_said(vllm):
    address = vllm.address.removesuffix("/v1")
    with pytest.raises(UserError, match=r"404 .* end in /v1"):
        Server(address).model_of(["base"], "x", "float32")


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


def manifest(recipe, arm="base"):
    return json.loads(recipe.run.samples(arm).with_name("manifest.json").read_text())


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
    assert manifest(recipe)["served"] == {"id": "base", "root": "/models/base"}
    assert manifest(recipe)["settings"]["engine"] == "server"
    # Without a limit in the recipe the arm's own tokenizer sets it.
    [most] = {body["max_tokens"] for body in vllm.asked}
    assert most == manifest(recipe)["asking"]["max_tokens"]
    assert most == limit or (limit is None and most > 12)


def test_where_the_server_is_and_how_much_is_asked_at_a_time_change_no_answer(world, vllm, capsys):
    sample_arm(recipe_of(world, vllm), "base", force=False)
    vllm.asked.clear()
    moved = recipe_of(world, vllm, rows=8, server=vllm.address.replace("127.0.0.1", "localhost"))
    sample_arm(moved, "base", force=False)
    assert vllm.asked == []
    assert "eval base: up to date" in capsys.readouterr().out


def test_sampling_here_does_not_go_on_with_the_answers_of_a_server(world, vllm):
    recipe = recipe_of(world, vllm)
    vllm.trouble = {5: (400, b"enough")}
    with pytest.raises(UserError, match="enough"):
        sample_arm(recipe, "base", force=False)
    here = recipe_of(world, vllm, server=None)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        sample_arm(here, "base", force=False)
    assert here.run.samples("base").read_bytes() == b""


def test_after_a_failure_the_same_command_asks_for_what_is_missing_alone(world, vllm):
    recipe = recipe_of(world, vllm, rows=4)
    vllm.trouble = dict.fromkeys(range(7, 10), (500, b"dead"))
    with pytest.raises(UserError, match=r"500 \(dead\).*the same command goes on"):
        sample_arm(recipe, "base", force=False)
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
    rows = [row for _, row in read_jsonl(recipe.run.samples("base"))]
    assert [row["completion"] for row in rows] == hostile * 12


def test_an_arm_is_asked_again_where_the_server_now_is(world, vllm):
    recipe = recipe_of(world, vllm)
    sample_arm(recipe, "base", force=False)
    path = recipe.run.samples("base").with_name("manifest.json")
    gone = json.loads(path.read_text())
    gone["asking"]["server"] = "http://127.0.0.1:9/v1"
    path.write_text(to_line(gone))
    vllm.asked.clear()
    rows = read_split(recipe.run, "test")[3:5]
    ask_again(recipe, "base", rows, 6, force=False)
    assert [(body["n"]) for body in vllm.asked] == [6, 6]
    fresh = {seed_of(recipe.seed, "fresh", "base", row["id"]) for row in rows}
    assert {body["seed"] for body in vllm.asked} == fresh
    assert len(lines(recipe, "base", fresh=True)) == 12


def test_an_arm_in_another_way_is_asked_of_the_model_that_it_starts_from(world, vllm):
    tune = {"temperature": [0.5, 1.0]}
    recipe = recipe_of(world, vllm, {"best": {"trainer": "none", "tune": tune}})
    sample_arm(recipe, "best", force=False)
    assert {body["model"] for body in vllm.asked} == {"base"}
    asked = [body["temperature"] for body in vllm.asked]
    assert (asked.count(0.5), asked.count(1.0)) == (2 + 12, 2)  # a tie: the first is taken


def run(monkeypatch, recipe, *arguments):
    monkeypatch.setattr("sys.argv", ["sample", "--recipe", str(recipe.path), *arguments])
    sample.main()


@pytest.fixture
def two(world, vllm, tokenizer):
    """A recipe with a trained arm, of which the server holds the base alone."""
    recipe = recipe_of(world, vllm, {"grpo": {"trainer": "grpo"}})
    world.train(recipe)
    save(tokenizer, recipe.run.folder / "grpo" / "model")
    return recipe


def test_arms_that_the_server_does_not_hold_are_left_out_and_said(two, vllm, monkeypatch, capsys):
    run(monkeypatch, two)
    assert len(lines(two, "base")) == 48
    assert not two.run.samples("grpo").is_file()
    said = f"eval: grpo is left out: {vllm.address} holds base, not {two.run.model('grpo')}"
    assert said in capsys.readouterr().out
    # Served in turn, each is sampled once.
    vllm.held = [{"id": "grpo"}]
    vllm.asked.clear()
    run(monkeypatch, two)
    assert {body["model"] for body in vllm.asked} == {"grpo"}
    assert len(lines(two, "grpo")) == 48


def test_where_no_arm_is_held_it_is_an_error(two, vllm, monkeypatch):
    vllm.held = [{"id": "other"}]
    with pytest.raises(UserError, match=f"^{vllm.address} holds other, not "):
        run(monkeypatch, two)


@pytest.mark.parametrize(
    "address", ["localhost:8000/v1", "ftp://h/v1", "http://a b/v1", "http://u:p@h/v1", "http://h:x"]
)
def test_a_wrong_address_is_refused_with_the_recipe(world, address):
    with pytest.raises(UserError, match=r"eval\.server must be an address"):
        world.recipe({}, eval={"server": address})
    with pytest.raises(UserError, match=r"arms\.cool\.eval\.server must be an address"):
        world.recipe({"cool": {"trainer": "none", "eval": {"server": address}}})


def test_ctrl_c_ends_at_once_though_answers_are_under_way(world, vllm):
    recipe = recipe_of(world, vllm)
    vllm.trouble = dict.fromkeys(range(2, 12), "hang")
    path = recipe.run.samples("base")
    work = lambda: run_main(lambda: sample_arm(recipe, "base", force=False))  # noqa: E731
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    for _ in range(300):
        if path.is_file() and path.read_bytes().count(b"\n") == 2 * 4:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(10)
    assert process.exitcode == 130
    assert len(lines(recipe, "base")) == 2 * 4
