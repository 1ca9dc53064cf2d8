"""The simulator's arithmetic against hand counts and against the model; its tables; its command."""

import pytest
import torch
from torch import distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.limits import Rates
from benchmarks.memory import saved_bytes
from benchmarks.scaling import costs, simulator, state_exchange
from benchmarks.scaling.__main__ import main
from benchmarks.scaling.costs import Microbatch, Model
from benchmarks.scaling.devices import Device, Link
from benchmarks.scaling.simulator import FP32, Plan, Training
from megalodon_tasks.cuda_ops.dispatch import use_backend
from megalodon_tasks.models.chunk_parallel import set_chunk_parallel
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.released.names import released_name, shard_axis

VOCABULARY = 100
CHANGES = {
    "SiLU": {},
    "SwiGLU": {"swiglu": True},
    "one head": {"num_heads": 1, "cema_ndim": 16},
    "rescaled": {"rescale_nffn": True, "num_layers": 1},
}
each_model = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


def config(**changes):
    sizes = {
        "model_dim": 64, "num_layers": 2, "num_heads": 2, "z_dim": 16, "value_dim": 96,
        "ffn_hidden_dim": 80, "cema_ndim": 4, "norm_num_groups": 4, "chunk_size": 32,
    }  # fmt: skip
    return MegalodonConfig(**(sizes | changes), causal=True)


def language_model(model):
    return CausalLM(model.config, model.vocab, share_emb=model.share_emb)


def forward(lm, sequences, length):
    tokens = torch.randint(lm.vocab_size, (sequences, length + 1))
    return lambda: lm.nll(tokens[:, :-1], tokens[:, 1:])[0].mean()


@pytest.mark.parametrize("name", costs.PRESETS)
def test_parameters_of_presets(name):
    model = costs.preset(name)
    with torch.device("meta"):
        lm = language_model(model)
    counted = model.config.num_layers * costs.block_parameters(model.config)
    counted += sum(costs.end_parameters(model))
    assert counted == sum(p.numel() for p in lm.parameters())


@each_model
def test_parameters_that_one_of_two_devices_holds_are_those_of_a_released_shard(changes):
    model = Model(config(**({"num_heads": 2} | changes | {"num_heads": 2})), VOCABULARY)
    with torch.device("meta"):
        lm = language_model(model)
    in_a_shard = sum(
        p.numel() // (1 if shard_axis(released_name(name)) is None else 2)
        for name, p in lm.named_parameters()
    )
    counted = model.config.num_layers * costs.block_parameters(model.config, 2)
    assert counted + sum(costs.end_parameters(model, 2)) == in_a_shard


@each_model
def test_operations_of_products_and_attention(changes):
    model, micro = Model(config(**changes), VOCABULARY, share_emb=True), Microbatch(2, 64, 4)
    lm = language_model(model)
    with FlopCounterMode(display=False) as counter:
        loss = forward(lm, 2, 64)()
        of_forward = counter.get_total_flops()
        loss.backward()
    layers, c = model.config.num_layers, model.config
    ops = [*costs.block_ops(c, micro) * layers, *costs.end_ops(model, micro)]
    products = [op for op in ops if op.kind == "products"]
    # The counter takes whole chunks, the simulator the pairs that see each other.
    chunks = layers * 2 * micro.tokens * c.chunk_size * (c.z_dim + c.value_dim)
    assert sum(op.forward.operations for op in products) + chunks == of_forward
    assert sum(op.both.operations for op in products) + 3 * chunks == counter.get_total_flops()
    attention = [op for op in ops if op.kind == "chunk_attention"]
    seen = (c.chunk_size + 1) / (2 * c.chunk_size)
    assert sum(op.forward.operations for op in attention) == pytest.approx(chunks * seen)


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "pieces"])
@each_model
def test_saved_activations(changes, pieces, group_of_one):
    """Within 3 %: tables and coefficients that do not grow with the length are left out."""
    model, micro = Model(config(**changes), VOCABULARY), Microbatch(1, 1024, 4)
    lm = language_model(model)
    set_chunk_parallel(lm, group_of_one if pieces else None)
    saved = saved_bytes(forward(lm, 1, 1024), lm.parameters())
    counted = costs.end_activations(model, micro, pieces)
    counted += model.config.num_layers * costs.block_activations(
        model.config, micro, "native", pieces
    )
    assert counted == pytest.approx(saved, rel=0.03)


def test_saved_activations_of_the_kernels_for_gpus():
    """Within 3 %, with the copy that RMSNorm saves on a CPU, where PyTorch has no kernel for it."""
    pytest.importorskip("triton")
    model, found = Model(config(num_layers=1, swiglu=True), VOCABULARY), []
    lm = language_model(model)
    for length in (64, 128):  # their difference leaves out what does not grow
        with use_backend("triton"):
            saved = saved_bytes(forward(lm, 1, length), lm.parameters())
        micro = Microbatch(1, length, 4)
        counted = costs.block_activations(model.config, micro) + costs.end_activations(model, micro)
        found.append((saved, counted + 4 * micro.tokens * model.config.model_dim))
    (few, few_counted), (many, many_counted) = found
    assert many_counted - few_counted == pytest.approx(many - few, rel=0.03)


def test_bytes_that_chunk_parallelism_sends(monkeypatch, group_of_one):
    model, micro = Model(config(), VOCABULARY), Microbatch(3, 64, 4)
    given = {"all_gather": [], "all_reduce": []}
    for name, sizes in given.items():
        collective = getattr(dist, name)

        def record(*args, sizes=sizes, collective=collective, **options):
            tensors = args[0] if isinstance(args[0], list) else [args[0]]
            sizes.append(sum(tensor.nbytes for tensor in tensors))
            return collective(*args, **options)

        monkeypatch.setattr(dist, name, record)
    lm = language_model(model)
    set_chunk_parallel(lm, group_of_one)
    forward(lm, 3, 64)().backward()
    state, moments = simulator.state_bytes(model, micro), simulator.moment_bytes(model, micro)
    for sizes in given.values():  # a norm and a CEMA in each of two blocks, and the final norm
        assert sorted(sizes) == sorted([moments, state, moments, state, moments])


def test_seconds_of_messages():
    link = Link(rate=100.0, latency=0.5)
    assert link.all_gather(400.0, 4) == pytest.approx(3 * (1.0 + 0.5))  # 3 times a part of 100
    assert link.all_reduce(400.0, 4) == pytest.approx(2 * 3 * (1.0 + 0.5))
    assert link.send(400.0) == pytest.approx(4.5)
    assert link.all_gather(400.0, 1) == 0.0


SLOW = Link(rate=1.0, latency=0.0)
MODEL = Model(config(), VOCABULARY)


def device(**changes):
    """One operation a second, and nothing else takes time, so that seconds are operations."""
    sizes = {"rates": Rates(1.0, float("inf")), "memory": 1e12, "per_node": 1, "overlaps": False}
    fast = Link(float("inf"), 0.0)
    return Device(**({"name": "slow", "near": fast, "far": fast} | sizes | changes))


def operations(training):
    """Return the operations of an update of ``MODEL`` on all devices."""
    micro = Microbatch(training.sequences, training.context, 4)
    ops = costs.block_ops(MODEL.config, micro) * MODEL.config.num_layers
    return sum(op.both.operations for op in [*ops, *costs.end_ops(MODEL, micro)])


def test_time_of_one_device_is_that_of_all_operations():
    training = Training(64, 6, FP32)
    time = simulator.time(MODEL, training, Plan(), device())
    assert time.total == time.compute == pytest.approx(operations(training))
    assert sum(time.sent.values()) == 0


def test_data_parallelism_divides_the_work_and_sums_the_gradients():
    training = Training(64, 6, FP32)
    time = simulator.time(MODEL, training, Plan(data=3), device(far=SLOW))
    assert time.compute == pytest.approx(operations(training) / 3)
    parameters = 2 * costs.block_parameters(MODEL.config) + sum(costs.end_parameters(MODEL))
    assert time.sent["data"] == pytest.approx(4 / 3 * 4 * parameters)
    assert time.waits["data"] == pytest.approx(time.sent["data"])
    hidden = simulator.time(MODEL, training, Plan(data=3), device(far=SLOW, overlaps=True))
    assert hidden.waits["data"] == 0


def test_divided_parameters_are_sent_three_times_for_each_microbatch():
    training = Training(64, 6, FP32)
    time = simulator.time(MODEL, training, Plan(data=3, sharded=True), device(far=SLOW))
    block = 4 * costs.block_parameters(MODEL.config)
    assert time.sent["sharded"] == pytest.approx(2 * 2 * 3 * 2 / 3 * block)
    assert time.waits["sharded"] == pytest.approx(time.sent["sharded"])
    assert time.sent["data"] == 0


def test_chunk_parallelism_divides_a_sequence_and_adds_the_states_of_pieces():
    training = Training(128, 1, FP32)
    time = simulator.time(MODEL, training, Plan(chunk=4), device(far=SLOW))
    added = costs.chunk_parallel_ops(MODEL.config, Microbatch(1, 32, 4))
    added = MODEL.config.num_layers * sum(op.both.operations for op in added)
    whole = operations(training)
    assert time.compute == pytest.approx(whole / 4 + added)
    own = 64 * 4 * 8 + 4 * 24  # CEMA's state and the moments
    assert time.sent["chunk"] == 2 * (3 + 2 * 3) * own
    assert time.waits["chunk"] == pytest.approx(time.sent["chunk"])
    again = simulator.time(MODEL, training, Plan(chunk=4, checkpoint=True), device(far=SLOW))
    assert again.sent["chunk"] == 2 * (2 * 3 + 2 * 3) * own


def test_tensor_parallelism_halves_the_work_and_exchanges_activations():
    training = Training(64, 1, FP32)
    time = simulator.time(MODEL, training, Plan(tensor=2), device(far=SLOW))
    assert time.compute == pytest.approx(operations(training) / 2)
    width = 64 * 64 * 4
    assert time.sent["tensor"] == 2 * 11 * width / 2
    assert time.waits["tensor"] == pytest.approx(time.sent["tensor"])


def test_stages_wait_for_their_first_and_after_their_last_microbatch():
    training = Training(64, 6, FP32)
    time = simulator.time(MODEL, training, Plan(pipeline=2), device())
    ends = sum(op.both.operations for op in costs.end_ops(MODEL, Microbatch(1, 64, 4)))
    stage = (operations(training) / 6 - ends) / 2 + ends
    assert time.compute == pytest.approx(6 * stage)
    assert time.bubble == pytest.approx(stage)
    assert time.sent["pipeline"] == 2 * 6 * 64 * 64 * 4


def test_recomputing_adds_a_forward_pass_of_the_blocks():
    training, block = Training(64, 1, FP32), costs.block_ops(MODEL.config, Microbatch(1, 64, 4))
    times = (simulator.time(MODEL, training, Plan(checkpoint=c), device()) for c in (False, True))
    plain, recomputed = (time.compute for time in times)
    assert recomputed - plain == pytest.approx(2 * sum(op.forward.operations for op in block))


def test_processes_that_share_cores_take_turns():
    training, plan = Training(64, 4, FP32), Plan(data=4)
    own, shared = (
        simulator.time(MODEL, training, plan, device(far=SLOW, cores=cores)).total
        for cores in (None, 2)
    )
    assert shared == pytest.approx(2 * own)
    assert device(cores=2).sharing(1) == 1


def test_memory_of_replicated_and_divided_parameters():
    model, training = costs.preset("1.3b"), Training(32768, 128)
    plain = simulator.memory(model, training, Plan(data=128, checkpoint=True))
    assert plain.state == 20 * 1_342_832_640
    tokens_by_width = 32768 * 2048 * 2
    ends = 32768 * (16 + 2 * 2 * 2048 + 4 * 32000)
    assert plain.saved == 24 * tokens_by_width + ends
    assert plain.peak == 8 * 32768 * 32000  # the scores, more than a block
    divided = simulator.memory(model, training, Plan(data=128, checkpoint=True, sharded=True))
    assert divided.state == 16 * 1_342_832_640 / 128


def test_stages_hold_the_activations_of_several_microbatches():
    training = Training(64, 6, FP32)
    memory = simulator.memory(MODEL, training, Plan(pipeline=2))
    block = costs.block_activations(MODEL.config, Microbatch(1, 64, 4))
    last = block + costs.end_activations(MODEL, Microbatch(1, 64, 4))
    first = 4 * costs.block_parameters(MODEL.config) * 4 + 4 * costs.end_parameters(MODEL)[0] * 4
    assert memory.total == max(first + 2 * block, memory.state + last + memory.peak)


def test_a_plan_recomputes_where_its_activations_do_not_fit():
    training, plan = Training(64, 1, FP32), Plan()
    needed = simulator.memory(MODEL, training, plan).total
    assert not simulator.fastest(MODEL, training, plan, device(memory=needed)).checkpoint
    assert simulator.fastest(MODEL, training, plan, device(memory=needed - 1)).checkpoint


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(data=4), "plan.data=4 does not divide sequences=6"),
        (Plan(chunk=3), "plan.chunk=3 x 32 does not divide context=128"),
        (Plan(tensor=4), "plan.tensor=4 does not divide num_heads=2"),
        (Plan(pipeline=3), "plan.pipeline=3 does not divide num_layers=2"),
        (Plan(pipeline=0), "plan.pipeline=0 does not divide num_layers=2"),
    ],
)
@pytest.mark.parametrize("function", [simulator.memory, simulator.time])
def test_plans_that_divide_nothing_are_refused(plan, message, function):
    arguments = (device(),) if function is simulator.time else ()
    with pytest.raises(ValueError, match=message):
        function(MODEL, Training(128, 6), plan, *arguments)


def test_tables_of_the_command(capsys):
    main(["table", "--model", "7b", "--gpu", "h200"])
    at_peak = capsys.readouterr().out
    assert "7b, 256 x H200 SXM" in at_peak
    assert at_peak.count("| data 128 x chunk 2, sharded | 32K | 256 | 16,384 |") == 1
    assert all(f"| {context} |" in at_peak for context in ("32K", "256K", "2M"))
    main(["table", "--model", "7b", "--gpu", "h200", "--matrix-share", "0.5"])
    assert capsys.readouterr().out != at_peak


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--devices", "100"], "does not divide"),
        (["table", "--update-tokens", "100"], "100 tokens of an update are not whole sequences"),
        (["table", "--matrix-share", "0"], "0 must be above 0"),
        (["table", "--model", "8b"], "invalid choice: '8b'"),
        (["--rounds", "0"], "0 must be at least 1"),
        (["--processes", "1"], "processes [1] must be positive, and one of them at least 2"),
    ],
)
def test_wrong_arguments_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_processes_are_measured(capsys):
    main(["--tiny", "--processes", "1", "2", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| data", "| chunk |"))]
    assert [row[:3] for row in rows] == [
        ["| data", "1", "32"], ["| data", "2", "32"], ["| chunk", "1", "64"], ["| chunk", "2", "32"]
    ]  # fmt: skip
    assert all(float(seconds) > 0 for row in rows for seconds in row[3:5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "3"], "3 processes cannot share 4096 tokens in chunks of 256"),
        (["--processes", "1"], "1 processes cannot share"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
    ],
)
def test_wrong_numbers_of_processes_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        state_exchange.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_both_ways_to_exchange_states_have_the_same_gradients(capsys):
    state_exchange.main(["--tiny", "--processes", "2", "4", "--rounds", "1"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["| 2", "| 4"]
    assert all(float(ms.strip(" |")) > 0 for row in rows for ms in row[1:])
