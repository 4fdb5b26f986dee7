"""Sources of questions about pictures that belong to no episode."""

from st4vla.platform.contracts import ActionSample, GroundingSample
from st4vla.platform.data.address import title_of
from st4vla.platform.data.mixture import Source
from st4vla.platform.data.packed import PackedPictures
from st4vla.platform.data.picture_formats import open_pictures
from st4vla.platform.data.pictures import Askable, PictureQuestions
from st4vla.platform.data.remote import fetch
from st4vla.platform.data.statistics import EmbodimentStatistics
from st4vla.platform.data.stills import StillQuestions, Stills
from st4vla.platform.errors import DataError
from st4vla.platform.train.source_config import ReadingConfig, SourceConfig, load_spread

# Options of picture sets that name a folder or a file, which may be an address as well.
PATHS = {"images", "instances"}


class WithoutActions:
    """What sources of pictures alone have in common: nothing moves in them.

    Attributes:
        place: what errors call the source.
    """

    place: str

    def robot(self) -> Source:
        """Refuse: pictures alone have no actions.

        Raises:
            DataError: always.
        """
        raise DataError(f"{self.place} holds pictures without actions; name it under grounding_data instead")

    def held_out_robot(self, count: int) -> list[ActionSample]:
        """Give none."""
        return []

    def statistics(self) -> EmbodimentStatistics | None:
        """Give none: nothing moves."""
        return None


class StillsSource(WithoutActions):
    """Annotated pictures without actions; the last share of them is held out, whole scenes together."""

    def __init__(self, config: SourceConfig, reading: ReadingConfig) -> None:
        self.stills = Stills(fetch(config.path, reading.downloads))
        self.name, self.place = title_of(config.path), str(self.stills.folder)
        self.questions = reading.questions
        total = len(self.stills)
        held_out = round(total * reading.held_out_share / len(reading.cameras)) * len(reading.cameras)
        self.num_training = total - held_out

    @property
    def digest(self) -> str:
        """Digest of the annotations."""
        return self.stills.digest

    def grounding(self) -> StillQuestions:
        """Questions about the pictures to train on."""
        return StillQuestions(self.stills, self.questions, range(self.num_training))

    def held_out_grounding(self, count: int) -> list[GroundingSample]:
        """Give up to `count` questions about held-out pictures, the same ones each time."""
        held_out = range(self.num_training, len(self.stills))
        return load_spread(StillQuestions(self.stills, self.questions, held_out), count)

    def texts(self) -> set[str]:
        """Instructions and names."""
        shown = [self.stills[place] for place in range(len(self.stills))]
        return {still.instruction for still in shown}.union(*(still.annotation.boxes for still in shown))


class AskedSource(WithoutActions):
    """Pictures that bring their own questions; the last share of them is held out.

    Args:
        name: what logs and errors call the source.
        questions: what its questions are counted under.
        pictures: all of them.
        held_out_share: of the pictures.
    """

    def __init__(self, name: str, questions: str, pictures: Askable, held_out_share: float) -> None:
        self.name = self.place = name
        self._questions, self.pictures = questions, pictures
        self.num_training = len(pictures) - round(len(pictures) * held_out_share)

    @property
    def digest(self) -> str:
        """Digest of the files with the pictures' rows."""
        return self.pictures.digest

    def grounding(self) -> PictureQuestions:
        """Questions of the pictures to train on."""
        return PictureQuestions(self._questions, self.pictures, range(self.num_training))

    def held_out_grounding(self, count: int) -> list[GroundingSample]:
        """Give up to `count` questions of held-out pictures, the same ones each time."""
        held_out = range(self.num_training, len(self.pictures))
        return load_spread(PictureQuestions(self._questions, self.pictures, held_out), count)

    def texts(self) -> set[str]:
        """Give none: a tokenizer made from the web's words would be none of ours."""
        return set()


def picture_source(config: SourceConfig, reading: ReadingConfig) -> AskedSource:
    """Open pictures with questions as others keep them."""
    folders = {name: str(fetch(str(config.options[name]), reading.downloads)) for name in PATHS & {*config.options}}
    pictures = open_pictures(config.kind, fetch(config.path, reading.downloads), {**config.options, **folders})
    return AskedSource(pictures.name, f"{pictures.name}/pictures", pictures, reading.held_out_share)


def packed_source(config: SourceConfig, reading: ReadingConfig) -> AskedSource:
    """Open pictures of the web that were packed from shards."""
    packed = PackedPictures(fetch(config.path, reading.downloads))
    return AskedSource(title_of(config.path), f"{packed.folder.name}/packed", packed, reading.held_out_share)
