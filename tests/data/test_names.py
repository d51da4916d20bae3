"""Items get the names that the data has for them, and their ids where it has none."""

import zipfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from noise2next.config import Dataset, load_params
from noise2next.data.names import item_names, published
from noise2next.errors import UserError
from noise2next.stages import datasets

LOG = {"path": "shop/log.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"}
ROWS = "".join(f"{k % 7}\t{k % 5 + 1}\t{k % 5 + 1}\t{1_200_000_000 + k}\n" for k in range(60))


def entry(**names: object) -> Dataset:
    return Dataset.model_validate({**LOG, "names": names})


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


def test_a_table_of_any_make_is_read(tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_bytes(
        'name;id\n"Café; la nuit";7\nSecond;8\n"two\nlines";9\n;10\nshort\n'.encode("latin-1")
    )
    found = item_names(entry(path="titles.csv", separator=";", encoding="latin-1", item="id", name="name"), tmp_path)
    assert found == {"7": "Café; la nuit", "8": "Second", "9": "two\nlines"}


def test_a_table_without_header_has_numbered_columns(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_text("1::Heat (1995)::Action\n2::Sabrina (1995)::Comedy\n")
    found = item_names(entry(path="movies.dat", separator="::", header=False, item="1", name="2"), tmp_path)
    assert found == {"1": "Heat (1995)", "2": "Sabrina (1995)"}


def test_where_there_is_no_table_there_are_no_names(tmp_path: Path) -> None:
    assert item_names(Dataset.model_validate(LOG), tmp_path) == {}
    assert item_names(entry(path="gone.csv"), tmp_path) == {}


def test_a_column_that_is_not_there_is_named_with_its_place_in_the_entry(tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_text("id,title\n1,Heat\n")
    with pytest.raises(UserError, match=r"no column 'label' for the name; it has id, title; correct names\.name"):
        item_names(entry(path="titles.csv", item="id", name="label"), tmp_path)


def test_a_table_outside_of_data_is_refused() -> None:
    with pytest.raises(ValidationError, match="must lie below data/"):
        entry(path="../titles.csv")


@pytest.mark.parametrize(
    ("members", "table", "encoding"),
    [
        ({"ml__u_data": b"", "ml__u_item": "1|Für|x\n".encode("latin-1")}, "ml/u.item", "latin-1"),
        ({"ratings_dat": b"", "movies_dat": "1::Für::x\n".encode()}, "movies.dat", "utf-8"),
        ({"ml__ratings_csv": b"", "ml__movies_csv": b"movieId,title,genres\n1,A,B\n"}, "ml/movies.csv", "utf-8"),
    ],
)
def test_a_publishers_table_is_found_beside_the_log(
    tmp_path: Path, members: dict[str, bytes], table: str, encoding: str
) -> None:
    path = archive(tmp_path / "log.zip", **members)
    found = published(path, next(iter(members)).replace("__", "/").replace("_", "."))
    assert found is not None
    assert (found.member, found.encoding) == (table, encoding)


@pytest.mark.parametrize(
    "members",
    [
        {"ratings_csv": b"", "movies_csv": b"film,label\n1,A\n"},  # another publisher's columns
        {"ratings_dat": b"", "movies_dat": b"1\tA\n"},
        {"a__ratings_csv": b"", "b__movies_csv": b"movieId,title\n1,A\n"},
        {"events_csv": b"", "movies_csv": b"movieId,title\n1,A\n"},
    ],
    ids=str,
)
def test_a_table_of_another_make_is_left_alone(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = archive(tmp_path / "log.zip", **members)
    assert published(path, next(iter(members)).replace("__", "/").replace("_", ".")) is None


class TestAdding:
    @pytest.fixture
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "data").mkdir()
        (tmp_path / "params.yaml").write_text("datasets: {}\nvariants: {}\n")
        monkeypatch.setattr(datasets, "version", lambda space: None)
        return tmp_path

    def test_the_entry_says_where_the_names_are_and_forgets_it_with_the_log(self, root: Path) -> None:
        path = archive(root / "log.zip", ml__u_data=ROWS.encode(), ml__u_item=b"1|Heat (1995)|x\n2|Sabrina (1995)|x\n")
        report = datasets.add(root, "shop", path, user="1", item="2", time="4")
        assert report.names == "ml/u.item"
        added = load_params(root / "params.yaml").dataset("shop")
        assert item_names(added, root / "data") == {"1": "Heat (1995)", "2": "Sabrina (1995)"}
        (root / "log.csv").write_text("user,item,time\n" + "".join(f"u{k},i{k % 9},{10**9 + k}\n" for k in range(50)))
        assert datasets.add(root, "shop", root / "log.csv").names is None
        assert load_params(root / "params.yaml").dataset("shop").names is None

    def test_a_table_of_ones_own_stays_when_the_log_is_added_anew(self, root: Path) -> None:
        (root / "log.csv").write_text("user,item,time\n" + "".join(f"u{k},i{k % 9},{10**9 + k}\n" for k in range(50)))
        datasets.add(root, "shop", root / "log.csv")
        text = (root / "params.yaml").read_text().replace("time_unit: s", "time_unit: s\n    names: {path: titles.csv}")
        (root / "params.yaml").write_text(text)
        assert datasets.add(root, "shop", root / "log.csv").names == "titles.csv"


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "items", "known"),
    [
        ("ml-100k", 1682, {"1": "Toy Story (1995)", "1682": "Scream of Stone (Schrei aus Stein) (1991)"}),
        ("ml-1m_partial", 3883, {"1": "Toy Story (1995)", "3952": "Contender, The (2000)"}),
        ("ml-latest-small", 9742, {"1": "Toy Story (1995)", "11": "American President, The (1995)"}),
    ],
)
def test_the_publishers_zips_name_their_items(shared: Path, name: str, items: int, known: dict[str, str]) -> None:
    path = shared / "raw" / f"{name}.zip"
    source = datasets.recognise(path)
    table = published(path, source.member)
    assert table is not None
    log = {**LOG, "path": path.name, "member": source.member, "names": table.model_dump()}
    found = item_names(Dataset.model_validate(log), path.parent)
    assert len(found) == items
    assert found.items() >= known.items()
    assert not any("\ufffd" in one for one in found.values())
