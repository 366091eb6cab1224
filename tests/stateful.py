"""Programs that keep state between calls, each in another place.

A captured step knows nothing of such state, so a fit that trusts it takes another trajectory than Pyro's SVI. `COUNTERS`
holds the hiding places: each builds a function that returns 0, 1, 2, … on successive calls. `program` makes a model that
changes with that count.
"""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import enum
import functools
import gc
import heapq
import io
import itertools
import mmap
import multiprocessing
import os
import queue
import random
import sqlite3
import string
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

__all__ = ["CHANGES", "COUNTERS", "SWITCH", "program"]

Counter = Callable[[], int]
COUNTERS: dict[str, Callable[[], Counter]] = {}


def counter(make: Callable[[], Counter]) -> Callable[[], Counter]:
    COUNTERS[make.__name__] = make
    return make


class _Class:
    count = 0
    table: ClassVar[dict[str, int]] = {}


GLOBAL = 0
LIST: list[int] = []
STATES: list[Any] = []
SWITCH = 30
BIG = [0] * 30_000
CYCLE = itertools.count()
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("count", default=0)


@counter
def closure():
    n = -1

    def tick():
        nonlocal n
        n += 1
        return n

    return tick


@counter
def global_name():
    globals()["GLOBAL"] = -1

    def tick():
        global GLOBAL  # noqa: PLW0603
        GLOBAL += 1
        return GLOBAL

    return tick


@counter
def global_list():
    LIST.clear()

    def tick():
        LIST.append(0)
        return len(LIST) - 1

    return tick


@counter
def class_attribute_by_global_name():
    _Class.count = -1

    def tick():
        _Class.count += 1
        return _Class.count

    return tick


@counter
def class_dict_by_global_name():
    _Class.table = {"n": -1}

    def tick():
        _Class.table["n"] += 1
        return _Class.table["n"]

    return tick


@counter
def function_attribute():
    def tick():
        tick.n = getattr(tick, "n", -1) + 1
        return tick.n

    return tick


@counter
def default_argument():
    def tick(memory=[-1]):  # noqa: B006
        memory[0] += 1
        return memory[0]

    return tick


@counter
def instance_attribute():
    @dataclass
    class State:
        n: int = -1

        def __call__(self):
            self.n += 1
            return self.n

    return State()


@counter
def slots():
    class State:
        __slots__ = ("n",)

    state = State()
    state.n = -1

    def tick():
        state.n += 1
        return state.n

    return tick


@counter
def property_of_a_class():
    class State:
        _n = -1

        @property
        def n(self):
            type(self)._n += 1
            return type(self)._n

    state = State()
    return lambda: state.n


@counter
def metaclass():
    class Meta(type):
        n = -1

    class State(metaclass=Meta):
        pass

    def tick():
        type(State).n += 1
        return State.n

    return tick


@counter
def enumeration():
    class State(enum.Enum):
        ONE = 1

    State.ONE.seen = -1

    def tick():
        State.ONE.seen += 1
        return State.ONE.seen

    return tick


@counter
def numpy_generator():
    twin, generator = np.random.default_rng(0), np.random.default_rng(0)
    place = {int(twin.integers(2**62)): n for n in range(5000)}
    return lambda: place[int(generator.integers(2**62))]


@counter
def random_generator():
    twin, generator = random.Random(0), random.Random(0)
    place = {twin.getrandbits(60): n for n in range(5000)}
    return lambda: place[generator.getrandbits(60)]


@counter
def torch_generator():
    twin, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    place = {int(torch.randint(2**60, (), generator=twin)): n for n in range(5000)}
    return lambda: place[int(torch.randint(2**60, (), generator=generator))]


@counter
def lru_cache():
    first = closure()
    calls = functools.lru_cache(maxsize=None)(lambda _: first())

    def tick():
        calls(calls.cache_info().currsize)
        return calls.cache_info().currsize - 1

    return tick


@counter
def cached_hits():
    calls = functools.lru_cache(maxsize=1)(lambda: None)
    calls()

    def tick():
        calls()
        return calls.cache_info().hits - 1

    return tick


@counter
def context_variable():
    VARIABLE.set(-1)

    def tick():
        VARIABLE.set(VARIABLE.get() + 1)
        return VARIABLE.get()

    return tick


@counter
def ctypes_number():
    number = ctypes.c_long(-1)

    def tick():
        number.value += 1
        return number.value

    return tick


@counter
def ctypes_buffer():
    buffer = ctypes.create_string_buffer(8)

    def tick():
        n = int.from_bytes(buffer.raw, "little")
        buffer.raw = (n + 1).to_bytes(8, "little")
        return n

    return tick


@counter
def array_of_numbers():
    numbers = array.array("l", [-1])

    def tick():
        numbers[0] += 1
        return numbers[0]

    return tick


@counter
def byte_array():
    numbers = bytearray(4)

    def tick():
        n = int.from_bytes(numbers, "little")
        numbers[:] = (n + 1).to_bytes(4, "little")
        return n

    return tick


@counter
def memory_map():
    memory = mmap.mmap(-1, 4)

    def tick():
        n = int.from_bytes(memory[:], "little")
        memory[:] = (n + 1).to_bytes(4, "little")
        return n

    return tick


@counter
def long_list():
    BIG[25_000] = -1

    def tick():
        BIG[25_000] += 1
        return BIG[25_000]

    return tick


@counter
def long_numpy_array():
    table = np.zeros(100_000)
    table[70_000] = -1

    def tick():
        table[70_000] += 1
        return int(table[70_000])

    return tick


@counter
def long_tensor():
    table = torch.zeros(100_000)
    table[70_000] = -1

    def tick():
        table[70_000] += 1
        return int(table[70_000])

    return tick


@counter
def nested_containers():
    state = {"a": [{"b": (collections.deque([-1]),)}]}

    def tick():
        inner = state["a"][0]["b"][0]
        inner.append(inner.pop() + 1)
        return inner[0]

    return tick


@counter
def iterator():
    numbers = iter(range(10_000))
    return lambda: next(numbers)


@counter
def count_of_itertools():
    numbers = itertools.count()
    return lambda: next(numbers)


@counter
def global_count_of_itertools():
    first = next(CYCLE) + 1
    return lambda: next(CYCLE) - first


@counter
def cycle_of_itertools():
    numbers = itertools.cycle(range(5000))
    return lambda: next(numbers)


@counter
def python_generator():
    def run():
        n = 0
        while True:
            yield n
            n += 1

    numbers = run()
    return lambda: next(numbers)


@counter
def fifo_queue():
    line: queue.SimpleQueue[int] = queue.SimpleQueue()
    line.put(-1)

    def tick():
        n = line.get() + 1
        line.put(n)
        return n

    return tick


@counter
def text_buffer():
    text = io.StringIO()

    def tick():
        text.write("x")
        return text.tell() - 1

    return tick


@counter
def file_on_disk():
    path = Path(tempfile.mkstemp()[1])

    def tick():
        with path.open("ab") as file:
            file.write(b"x")
        return path.stat().st_size - 1

    return tick


@counter
def environment():
    os.environ["TAUT_TEST_COUNT"] = "-1"

    def tick():
        os.environ["TAUT_TEST_COUNT"] = str(int(os.environ["TAUT_TEST_COUNT"]) + 1)
        return int(os.environ["TAUT_TEST_COUNT"])

    return tick


@counter
def database():
    base = sqlite3.connect(":memory:")
    base.execute("create table t (n integer)")

    def tick():
        base.execute("insert into t values (0)")
        return base.execute("select count(*) from t").fetchone()[0] - 1

    return tick


@counter
def thread_local():
    state = threading.local()
    state.n = -1

    def tick():
        state.n += 1
        return state.n

    return tick


@counter
def weak_dictionary():
    state: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    class Key:
        pass

    key = Key()
    state[key] = -1

    def tick():
        state[key] += 1
        return state[key]

    return tick


@counter
def attribute_of_a_module():
    string.taut_count = -1

    def tick():
        string.taut_count += 1
        return string.taut_count

    return tick


@counter
def list_in_a_module():
    module = types.ModuleType("taut_state")
    module.numbers = []
    sys.modules["taut_state"] = module

    def tick():
        import taut_state

        taut_state.numbers.append(0)
        return len(taut_state.numbers) - 1

    return tick


@counter
def data_frame():
    frame = pd.DataFrame({"n": [-1]})

    def tick():
        frame.loc[0, "n"] += 1
        return int(frame.loc[0, "n"])

    return tick


@counter
def attribute_of_the_store():
    store = pyro.get_param_store()
    store.taut_count = -1

    def tick():
        store.taut_count += 1
        return store.taut_count

    return tick


@counter
def identity_of_new_objects():
    kept: list[object] = []

    def tick():
        kept.append(object())
        return sum(1 for item in kept if item is not None) - 1

    return tick


@counter
def object_found_by_the_collector():
    class Hidden:
        n = -1

    holder = [Hidden()]

    def tick():
        hidden = next(o for o in gc.get_referents(holder) if isinstance(o, Hidden))
        hidden.n += 1
        return hidden.n

    return tick


@counter
def buffer_of_a_module():
    module = torch.nn.Module()
    module.register_buffer("n", torch.tensor(-1))

    def tick():
        module.n += 1
        return int(module.n)

    return tick


@counter
def running_statistics():
    norm = torch.nn.BatchNorm1d(2)

    def tick():
        norm(torch.ones(3, 2))
        return int(norm.num_batches_tracked) - 1

    return tick


@counter
def partial_with_a_list():
    def step(memory):
        memory.append(0)
        return len(memory) - 1

    return functools.partial(step, [])


@counter
def bound_method_of_a_set():
    seen: set[int] = set()

    def tick():
        seen.add(len(seen))
        return len(seen) - 1

    return tick


@counter
def exception_traceback():
    kept = ValueError()

    def tick():
        kept.args = (*kept.args, 0)
        return len(kept.args) - 1

    return tick


# Places that no list named when the search was written.


@counter
def descriptor():
    class Counting:
        n = -1

        def __get__(self, owner, kind=None):
            self.n += 1
            return self.n

    class State:
        n = Counting()

    state = State()
    return lambda: state.n


@counter
def heap():
    heap_of_numbers = [0]

    def tick():
        n = heapq.heappop(heap_of_numbers)
        heapq.heappush(heap_of_numbers, n + 1)
        return n

    return tick


@counter
def memory_map_of_numpy():
    table = np.memmap(tempfile.mkstemp()[1], dtype=np.int64, mode="w+", shape=(8,))
    table[3] = -1

    def tick():
        table[3] += 1
        return int(table[3])

    return tick


@counter
def weak_reference():
    class State:
        n = -1

    state = State()
    STATES.append(state)
    found = weakref.ref(state)

    def tick():
        found().n += 1
        return found().n

    return tick


@counter
def order_of_a_dictionary():
    order = collections.OrderedDict((n, None) for n in range(5000))

    def tick():
        n = next(iter(order))
        order.move_to_end(n)
        return n

    return tick


@counter
def counter_of_collections():
    seen = collections.Counter()

    def tick():
        seen["calls"] += 1
        return seen["calls"] - 1

    return tick


@counter
def user_dictionary():
    state = collections.UserDict(n=-1)

    def tick():
        state["n"] += 1
        return state["n"]

    return tick


@counter
def split_iterator():
    numbers, _ = itertools.tee(itertools.count())
    return lambda: next(numbers)


@counter
def chained_iterators():
    numbers = itertools.chain([0, 1, 2], range(3, 5000))
    return lambda: next(numbers)


@counter
def sliced_iterator():
    numbers = itertools.islice(itertools.count(), None)
    return lambda: next(numbers)


@counter
def enumerated_iterator():
    numbers = enumerate(itertools.repeat(None))
    return lambda: next(numbers)[0]


@counter
def zipped_iterators():
    numbers = zip(range(5000), range(5000), strict=True)
    return lambda: next(numbers)[0]


@counter
def mapped_iterator():
    numbers = map(abs, range(5000))
    return lambda: next(numbers)


@counter
def accumulated_iterator():
    numbers = itertools.accumulate(itertools.repeat(1), initial=0)
    return lambda: next(numbers)


@counter
def hook_of_a_module():
    module, seen = torch.nn.Identity(), []
    module.register_forward_hook(lambda *_: seen.append(0))

    def tick():
        module(torch.zeros(1))
        return len(seen) - 1

    return tick


@counter
def bits_of_a_random_state():
    generator = np.random.RandomState(0)
    twin = np.random.RandomState(0)
    place = {float(twin.random_sample()): n for n in range(5000)}
    return lambda: place[float(generator.random_sample())]


@counter
def global_python_generator():
    random.seed(0)
    twin = random.Random(0)
    place = {twin.random(): n for n in range(5000)}
    state = [random.getstate()]

    def tick():
        kept = random.getstate()
        random.setstate(state[0])
        n = place[random.random()]
        state[0] = random.getstate()
        random.setstate(kept)
        return n

    return tick


@counter
def attribute_of_a_library_class():
    dist.Normal.taut_count = -1

    def tick():
        dist.Normal.taut_count += 1
        return dist.Normal.taut_count

    return tick


@counter
def cached_property_of_an_object():
    class State:
        @functools.cached_property
        def seen(self):
            return []

    state = State()

    def tick():
        state.seen.append(0)
        return len(state.seen) - 1

    return tick


@counter
def coroutine():
    async def run(line):
        line.append(0)
        return len(line) - 1

    line: list[int] = []

    def tick():
        try:
            run(line).send(None)
        except StopIteration as done:
            return done.value

    return tick


@counter
def generator_that_is_sent_to():
    def run():
        n = -1
        while True:
            n += yield n

    numbers = run()
    next(numbers)
    return lambda: numbers.send(1)


@counter
def pipe():
    read, write = os.pipe()
    os.write(write, b"0")

    def tick():
        n = int(os.read(read, 100))
        os.write(write, str(n + 1).encode())
        return n

    return tick


@counter
def place_in_a_file():
    file = os.open(tempfile.mkstemp()[1], os.O_RDWR)

    def tick():
        return os.lseek(file, 1, os.SEEK_CUR) - 1

    return tick


@counter
def open_file():
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open
    STATES.append(file)

    def tick():
        file.write(b"x")
        return file.tell() - 1

    return tick


@counter
def shared_memory():
    number = multiprocessing.Value("i", -1)

    def tick():
        number.value += 1
        return number.value

    return tick


@counter
def tensor_in_a_list_of_arrays():
    tables = [np.zeros(3), torch.full((2, 2), -1.0)]

    def tick():
        tables[1][1, 1] += 1
        return int(tables[1][1, 1])

    return tick


@counter
def dispatched_function():
    @functools.singledispatch
    def handle(value):
        raise TypeError

    seen: list[int] = []
    handle.register(int)(lambda value: seen.append(value) or len(seen) - 1)
    return lambda: handle(1)


@counter
def decorated_function():
    def counted(function):
        @functools.wraps(function)
        def wrapper():
            wrapper.calls += 1
            return function(wrapper.calls)

        wrapper.calls = -1
        return wrapper

    return counted(lambda n: n)


CHANGES: dict[str, Callable[[int], float]] = {
    "drift": lambda n: 1e-3 * n,
    "switch": lambda n: float(n >= SWITCH),
    "alternate": lambda n: 0.2 * (n % 2),
}
"""How the model depends on the count: at every call, from some call on, at every second call."""


def program(make: Callable[[], Counter], change: Callable[[int], float]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A model whose likelihood moves with the count of its calls, and a mean-field guide."""
    tick = make()

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + change(tick()), 1.0), obs=x)

    def guide(x):
        m = pyro.param("m", torch.tensor(0.1))
        s = pyro.param("s", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("loc", dist.Normal(m, s))

    return model, guide
