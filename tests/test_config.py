"""Gin at the edge: files, command-line bindings, error sentences, and the resolved text."""

import dataclasses
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence

import gin
import pytest
from zeroprompt_jax import config
from zeroprompt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Motor:
    """A configurable of the tests."""

    power: float = 1.0
    name: str = "plain"
    gears: tuple[int, ...] = (1, 2)
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spare: Sequence[int] | int | None = None

    def __post_init__(self):
        if self.power < 0:
            raise UserError(f"Motor.power {self.power:g} must not be negative.\nSecond line.")


@dataclasses.dataclass(frozen=True)
class Car:
    motor: Motor
    seats: int = 4
    model_dir: str = ""
    maker: object = dataclasses.field(default=print)
    steps: Sequence[str | Callable[[], int]] = ()
    others: Mapping[str, Motor] = dataclasses.field(default_factory=dict)



gin.constant("test_config.SEATS", 5)


@gin.configurable(module="users_own")
def wheel(radius, spokes=3):
    return radius, spokes


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """The classes above as entries of the table, in a module that can be imported."""
    module = types.ModuleType("motors")
    module.Motor, module.Car = Motor, Car
    monkeypatch.setitem(sys.modules, "motors", module)
    entries = {"test.Motor": "motors:Motor", "test.Car": "motors:Car"}
    monkeypatch.setattr(config, "CONFIGURABLES", {**config.CONFIGURABLES, **entries})
    yield
    config.load()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes gin files into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.gin").write_text(textwrap.dedent(text))
        return [f"{name}.gin" for name in texts][-1:]

    return write


def mistake(gin_files=(), bindings=()):
    with pytest.raises(UserError) as caught:
        config.load(gin_files, bindings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_objects_are_built_from_files_and_later_bindings_win(files):
    main = files(
        base="POWER = 2.0\nMotor.power = %POWER\nCar.motor = @Motor()\n",
        main="include 'base.gin'\nMotor:\n  name = 'diesel'  # a block\n  gears = (1, 2, 3)\n",
    )
    config.load(main, ["POWER = 5.0", "test.Car.seats = 2"])
    assert config.make("Car") == Car(Motor(5.0, "diesel", (1, 2, 3)), seats=2)
    assert type(config.make("Car")) is Car
    assert config.make("Motor", power=7).power == 7
    assert config.macro("POWER") == 5.0 and config.macro("OTHER", "none") == "none"
    assert Motor() == Motor(1.0, "plain")  # plain Python stays as it is
    config.load(bindings=["Motor.name = 'new'"])
    assert config.make("Motor") == Motor(name="new")  # a load replaces what was there


def test_scopes_and_users_own_configurables():
    config.load(bindings=["Motor.power = 1.5", "eval/Motor.power = 9.0", "Car.motor = @eval/Motor()"])
    assert config.make("Car").motor.power == 9 and config.make("Motor").power == 1.5
    config.load(bindings=["wheel.radius = 4"])
    assert config.make("wheel") == config.make("users_own.wheel") == (4, 3)


def test_resolved_text_leaves_out_macros_that_a_later_binding_replaced(files, tmp_path):
    main = files(main="X = 3.5\nY = %X\nMotor.power = %Y\nZ = 4.5\nMotor.power = %Z\n")
    config.load(main)
    text = config.resolved()
    assert "Z = 4.5" in text and "X = " not in text and "Y = " not in text
    (tmp_path / "resolved.gin").write_text(text)
    config.load([str(tmp_path / "resolved.gin")])
    assert config.make("Motor").power == 4.5


def test_resolved_text_rebuilds_the_same_objects(files, tmp_path):
    main = files(main="X = 3.5\nY = %X\nMotor.power = %Y\nCar:\n  motor = @Motor()\n  model_dir = 'a b'\n")
    config.load(main, ["Motor.name = '" + "long name " * 30 + "'"])
    car, text = config.make("Car"), config.resolved()
    assert "Car.seats = 4" in text and "test.Motor.gears = (1, 2)" in text  # defaults are written down
    assert "include" not in text and "maker" not in text
    (tmp_path / "saved.gin").write_text(text)
    config.load(["saved.gin"])
    assert config.make("Car") == car and config.resolved() == text


def test_files_are_found_beside_the_package_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.load(["models/t5_1_1_base.gin"])
    assert config.make("T5Config").emb_dim == 768
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "t5_1_1_base.gin").write_text("T5Config.emb_dim = 64\n")
    config.load(["models/t5_1_1_base.gin"])  # a user's own file of that name comes first
    assert config.make("T5Config").emb_dim == 64


def test_unknown_files_and_names_offer_the_nearest(files):
    assert mistake(["models/t5_1_1_bsae.gin"]).endswith("Did you mean 'models/t5_1_1_base.gin'?")
    assert mistake(["t5_1_1_base"]).endswith("Did you mean 'models/t5_1_1_base.gin'?")
    main = files(main="\nMotr.power = 1\n")
    assert mistake(main) == "main.gin, line 2: Unknown configurable 'Motr'. Did you mean 'test.Motor'?"
    assert mistake(bindings=["Motor.pwer = 1"]).endswith("test.Motor has no parameter 'pwer'. Did you mean 'power'?")
    assert mistake(bindings=["wheel.radios = 1"]).endswith("wheel has no parameter 'radios'. Did you mean 'radius'?")
    assert mistake(bindings=["Motor.zzz = 1"]).endswith("It has power, name, gears, limits, spare.")
    assert "Did you mean 'test.Motor'?" in mistake(bindings=["Car.motor = [@Moter()]"])
    main = files(main="include 'nowhere.gin'\n")
    assert mistake(main).startswith("main.gin, line 1: Config file 'nowhere.gin' does not exist")
    main = files(main="import no_such_module_here\n")
    assert mistake(main).startswith("main.gin, line 1: cannot import 'no_such_module_here'")


def test_macros_are_checked_both_ways(files):
    main = files(main="TRAIN_STEPS = 10\nMotor.power = %TRAIN_STEPS\n")
    sentence = mistake(main, ["TRAIN_STEP = 20"])
    assert sentence == "--gin 'TRAIN_STEP = 20': nothing uses the macro 'TRAIN_STEP'. Did you mean 'TRAIN_STEPS'?"
    assert "the macro %POWER has no value" in mistake(bindings=["Motor.power = %POWER"])
    main = files(main="MODEL_DIR = %gin.REQUIRED\nCar.model_dir = %MODEL_DIR\n")
    assert mistake(main) == "MODEL_DIR has no value and this configuration requires one: give --gin.MODEL_DIR=VALUE."
    config.load(main, ["MODEL_DIR = 'here'"])


@pytest.mark.parametrize("text", ["Motor.power 3", "Motor.power = (1,", "Motor.power = 1 2", "= 3", "Motor:\nx", "a b"])
def test_syntax_errors_name_file_and_line(files, text):
    main = files(main=f"# first line\n{text}\n")
    assert mistake(main).startswith("main.gin, line ")
    mistake(bindings=[text])


def test_circles_end(files):
    main = files(main="include 'main.gin'\n")
    assert "includes itself" in mistake(main)
    config.load(bindings=["A = %B", "B = %A", "Motor.power = %A"])
    config.macro("A")
    with pytest.raises(UserError, match="circle"):
        config.make("Motor")


def test_errors_of_the_objects_themselves_arrive_unchanged():
    config.load(bindings=["Motor.power = -1", "Car.motor = @Motor()"])
    for name in ("Motor", "Car"):
        with pytest.raises(UserError) as caught:
            config.make(name)
        assert str(caught.value) == "Motor.power -1 must not be negative.\nSecond line."
    config.load(bindings=["Car.seats = 3"])
    with pytest.raises(UserError, match="Car.motor has no value: bind it in the config or give --gin.Car.motor=VALUE"):
        config.make("Car")
    assert config.make("Car", motor=1) == Car(1, seats=3)
    config.load()
    with pytest.raises(UserError, match="There is no config: give --gin_file=FILE"):
        config.make("Car")
    config.load(bindings=["Motor.power = 3.0"])
    with pytest.raises(UserError, match="The config says nothing of Car: it is for another command, or lacks Car.motor"):
        config.make("Car")


def test_a_failed_load_keeps_the_last_configuration():
    config.load(bindings=["Motor.power = 3.0"])
    mistake(bindings=["Motor.pwer = 1"])
    assert config.make("Motor").power == 3 and "Motor.power = 3.0" in config.resolved()


@pytest.mark.parametrize(
    "binding, kind",
    [
        ("Motor.power = 'fast'", "a number"),
        ("Motor.power = None", "a number"),
        ("Motor.name = 3", "text in quotes"),
        ("Car.seats = 4.0", "a whole number"),
        ("Car.seats = True", "a whole number"),
        ("Car.seats = @Motor()", "a whole number"),
        ("Motor.gears = 3", "a list [a whole number, …]"),
        ("Motor.gears = [1, '2']", "a list [a whole number, …]"),
        ("Motor.gears = {1: 2}", "a list [a whole number, …]"),
        ("Motor.spare = 10000.0", "a list [a whole number, …] or a whole number or None"),
        ("Motor.limits = 0.1", "a dictionary {text in quotes: a number, …}"),
        ("Motor.limits = {'a': '1'}", "a dictionary {text in quotes: a number, …}"),
        ("Motor.limits = {1: 1.0}", "a dictionary {text in quotes: a number, …}"),
        ("Car.steps = 'films'", "a list [text in quotes or a function (@NAME), …]"),
        ("Car.steps = [3]", "a list [text in quotes or a function (@NAME), …]"),
        ("Car.motor = 'fast'", "@test.Motor()"),
        ("Car.motor = 3", "@test.Motor()"),
        ("Car.motor = @test.Car()", "@test.Motor()"),
        ("Car.others = {'a': 'fast'}", "a dictionary {text in quotes: @test.Motor(), …}"),
        ("Experiment.method = 'lora'", "an object of Method, such as @methods.LoRA()"),
        ("Genetic.fitness = 'meanlogits'", "an object of Fitness, such as @fitness.MeanLogit()"),
        ("Evaluate.strategy = 'beams'", "@Greedy() or @Sample() or @Beam()"),
    ],
)
def test_plain_values_must_be_of_the_annotated_type(binding, kind):
    name, _, value = binding.partition(" = ")
    prefix = "test." if name.startswith(("Motor", "Car")) else ""
    sentence = f"{prefix}{name} is {value}; it must be {kind}."
    assert mistake(bindings=[binding]).endswith(sentence)
    through_macro = mistake(bindings=[f"X = {value}", f"{name} = %X"])
    assert through_macro == f"--gin 'X = {value}': {sentence}"
    config.load(bindings=["Motor.power = 3", "Motor.gears = [1]", "Car.motor = None", "wheel.radius = 'any'"])


def test_values_of_the_annotated_type_are_let_through():
    """Also what only building can tell: what functions give, constants of gin's, macros and references deep inside."""
    made = ["Motor.gears = (1, %N)", "N = 3", "Motor.limits = {'a': 1, 'b': %X}", "X = 0.5", "Motor.spare = None"]
    config.load(bindings=[*made, "Car.motor = @Motor()", "Car.steps = ['a', @wheel]", "Car.others = {'b': @Motor()}"])
    assert config.make("Car").others["b"] == config.make("Motor") == Motor(gears=(1, 3), limits={"a": 1, "b": 0.5})
    config.load(bindings=["Car.motor = @wheel()", "Car.seats = @wheel()", "Genetic.fitness = @wheel()", "Motor.spare = [1, 2]"])
    config.load(bindings=["Car.motor = None", "Car.seats = %test_config.SEATS"])
    assert config.make("Car").seats == 5
    assert mistake(bindings=["Motor.gears = [%N]", "N = '2'"]).endswith("is [%N]; it must be a list [a whole number, …].")


@pytest.mark.parametrize(
    "value, meant",
    [
        ("'/models/x'", "/models/x"),
        ("/models/x y", "/models/x y"),
        ("gs://bucket/run-1", "gs://bucket/run-1"),
        ("bytes", "bytes"),
        ("", ""),
        ("it's", "it's"),
        ("10", 10),
        ("-1e-3", -1e-3),
        ("10 apples", "10 apples"),
        ("(1, 'a')", (1, "a")),
        ("{'inputs': 32}", {"inputs": 32}),
        ("None", None),
        ("True", True),
    ],
)
def test_command_line_values(value, meant):
    rest, bindings = config.split_arguments(["--a=1", f"--gin.X={value}", "b"])
    assert rest == ["--a=1", "b"]
    config.load(bindings=[*bindings, "Car.maker = %X", "Car.motor = None"])
    assert config.make("Car").maker == meant and config.macro("X") == meant
    _, bindings = config.split_arguments([f"--gin.Car.maker={value}"])
    config.load(bindings=[*bindings, "Car.motor = None"])
    assert config.make("Car").maker == meant


@pytest.mark.parametrize("argument", ["--gin.X", "--gin.X=true", "--gin.X=(1,", "--gin.X='a"])
def test_command_line_values_that_cannot_be_meant(argument):
    with pytest.raises(UserError, match="gin.X"):
        config.split_arguments([argument])


def test_a_binding_that_would_do_nothing_is_refused(files):
    main = files(main="Car.motor = @Motor()\n")
    config.load(main, ["Motor.power = 2.0", "Car.seats = 3"])
    assert config.make("Car") == Car(Motor(2.0), seats=3)
    unused = files(unused="Car.motor = None\n")
    sentence = mistake(unused, ["Motor.power = 2.0"])
    assert sentence == "--gin 'Motor.power = 2.0': nothing in this configuration uses test.Motor."
    config.load(unused, ["Motor.power = 2.0", "Car.motor = @Motor()"])
    # In files it may stand, as another may have taken its place; and what is no part of ours may be used anywhere.
    config.load(files(both="Motor.power = 2.0\nCar.motor = None\n"), ["Motor.name = 'any'", "wheel.radius = 4"])


def test_a_class_where_an_object_belongs_is_refused():
    sentence = mistake(bindings=["Car.motor = @fast/Motor"])
    assert sentence == "--gin 'Car.motor = @fast/Motor': test.Car.motor is the class itself; write @fast/Motor()."
    protocol = mistake(bindings=["Genetic.fitness = @LabelledDev"])
    assert protocol.endswith("Genetic.fitness is the class itself; write @LabelledDev().")
    nested = mistake(bindings=["Car.others = {'a': @Motor(), 'b': @Motor}"])
    assert nested.endswith("test.Car.others has the class itself; write @Motor().")
    assert mistake(bindings=["Evaluate.strategy = @Beam"]).endswith("Evaluate.strategy is the class itself; write @Beam().")
    config.load(bindings=["Car.motor = None", "Car.maker = @Motor"])
    assert config.make("Car").maker is not None


def test_every_entry_of_the_table_is_written_as_module_and_attribute():
    for target in config.CONFIGURABLES.values():
        module, attribute = target.split(":")
        assert attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def test_library_code_needs_no_gin():
    code = "import sys, zeroprompt_jax.config, zeroprompt_jax.models.t5; sys.exit('gin' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Published sizes, in millions: the papers' tables and the checkpoints' own counts.
SIZES = {
    "t5_1_0": {"small": 60.5, "base": 222.9, "large": 737.7, "3b": 2851.6, "11b": 11307.3},
    "t5_1_1": {"small": 77.0, "base": 247.6, "large": 783.2, "xl": 2849.8, "xxl": 11135.3},
    "mt5": {"small": 300.2, "base": 582.4, "large": 1229.6, "xl": 3742.6, "xxl": 12921.1},
    "byt5": {"small": 299.6, "base": 581.7, "large": 1229, "xl": 3744, "xxl": 12920},
}


@pytest.mark.parametrize("family, size", [(family, size) for family in SIZES for size in SIZES[family]])
def test_model_files_have_the_published_number_of_parameters(family, size):
    config.load([f"models/{family}_{size}.gin"])
    c = config.make("T5Config")
    attention = 4 * c.emb_dim * c.num_heads * c.head_dim
    mlp = (1 + len(c.mlp_activations)) * c.emb_dim * c.mlp_dim
    vocabulary = c.vocab_size * c.emb_dim * (1 if c.logits_via_embedding else 2)
    layers = c.num_encoder_layers * (attention + mlp) + c.num_decoder_layers * (2 * attention + mlp)
    assert (vocabulary + layers) / 1e6 == pytest.approx(SIZES[family][size], rel=2e-3)
    assert c.logits_via_embedding == (family == "t5_1_0")
    assert c.vocab_size == {"mt5": 250112, "byt5": 384}.get(family, 32128)
