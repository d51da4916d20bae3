"""What a column is, from its name and a few of its values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import median

from noise2next.config import TimeUnit

Values = Sequence[str | None]

# Names as `plain` spells them, the most telling first.
_SPELLINGS = {
    "user": "userid user uid useridx usersid reviewerid reviewer visitorid visitor customerid customeruniqueid customer"
    " clientid client memberid member accountid account buyerid buyer shopperid personid listenerid readerid playerid"
    " viewerid profileid authorid sessionid session username",
    "item": "itemid item iid itemidx movieid movie asin parentasin productid product artistid artist trackid track"
    " songid song albumid album bookid book isbn businessid business articleid article newsid videoid video gameid"
    " appid sku skuid stockcode productcode contentid poiid poi venueid placeid locationid recipeid courseid adid"
    " hotelid title itemname",
    "time": "timestamp unixreviewtime unixtime ts time datetime eventtime eventtimestamp created createdat createtime"
    " createdtime date reviewtime reviewdate ratingtime ratedate ratingdate timestampms timems epoch when orderdate"
    " invoicedate purchasedate purchasetime at position",
    "rating": "rating ratings overall stars star score ratingscore value preference weight count plays playcount"
    " playtime quantity confidence",
}
_NAMES = {role: spellings.split() for role, spellings in _SPELLINGS.items()}
_ISO = re.compile(
    r"\d{4}[-/]\d{1,2}[-/]\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*(Z|UTC|[+-]\d{2}(:?\d{2})?)?)?", re.ASCII
)
_COMPACT = re.compile(r"(\d{4})(\d{2})(\d{2})", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
NOTHING = ("", "nan", "NaN", "NAN", "null", "NULL", "Null", "none", "None", "NONE", "\\N", "<NA>")
_MOSTLY = 0.9
_DATED = 0.95  # share of eight digits that must be days of the calendar
_FEW = 30  # distinct values that a scale of ratings has at most
_CLOCKS: tuple[tuple[TimeUnit, float], ...] = (("s", 1.0), ("ms", 1e3), ("us", 1e6))
_FROM, _TO = 1e8, 5e9  # seconds of the years 1973 and 2128; wider bounds would take long ids for times


def plain(name: str) -> str:
    """A column name without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def named(role: str, names: Sequence[str]) -> list[str]:
    """Columns whose name speaks for a role, the most telling first."""
    known = _NAMES[role]
    found = sorted((name for name in names if plain(name) in known), key=lambda name: known.index(plain(name)))
    if not found and role in ("user", "item"):
        found = [name for name in names if role in re.split(r"[^a-z]+", name.lower())]
    return found


def given_of(values: Values) -> list[str]:
    """The values that are there: neither empty nor a word for nothing."""
    return [value for value in values if value and value.strip() not in NOTHING]


def share_numeric(values: Values) -> float:
    """The share of the given values that are finite numbers."""
    given = given_of(values)
    return sum(_NUMBER.fullmatch(value) is not None for value in given) / len(given) if given else 0.0


def time_unit(values: Values) -> TimeUnit | None:
    """Seconds, milliseconds or microseconds by magnitude, ISO text by form, small numbers as an order; or None."""
    given = [value.strip() for value in values if value and value.strip()]
    if not given:
        return None
    if sum(_ISO.fullmatch(value) is not None for value in given) >= _MOSTLY * len(given):
        return "iso"
    numbers = [float(value) for value in given if _NUMBER.fullmatch(value)]
    if len(numbers) < _MOSTLY * len(given):
        return None
    middle = median(numbers)
    for unit, scale in _CLOCKS:
        if _FROM * scale <= middle < _TO * scale:
            given_ones = [one for one in numbers if one > 0]  # 0 and -1 stand for none
            fitting = sum(_FROM * scale <= one < _TO * scale for one in given_ones)
            return unit if fitting >= _MOSTLY * len(given_ones) else None  # else two units are mixed
    return "order" if 0 <= middle < _FROM else None


def compact_dates(values: Values) -> bool:
    """Whether these are dates as YYYYMMDD, which only the name of their column tells from numbers."""
    given = [value.strip() for value in values if value and value.strip()]
    return bool(given) and sum(_day(value) is not None for value in given) > _DATED * len(given)


def _day(value: str) -> str | None:
    """YYYYMMDD with its dashes; None for what is no day from 1970 on."""
    match = _COMPACT.fullmatch(value)
    if match is None:
        return None
    try:
        day = datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC)
    except ValueError:
        return None
    return day.strftime("%Y-%m-%d") if 0 <= day.timestamp() < _TO else None


def date(value: str, unit: TimeUnit) -> str | None:
    """A time as a person reads it, to the second; a place in an order as it stands; None where it is neither."""
    value = value.strip()
    if unit == "iso":
        return value if _ISO.fullmatch(value) else _day(value)
    if not _NUMBER.fullmatch(value):
        return None
    if unit == "order":
        return value
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=float(value) / dict(_CLOCKS)[unit])
    except OverflowError:
        return None
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def roles_by_content(columns: Sequence[Values], wanted: Sequence[str]) -> dict[str, int]:
    """Places of the `wanted` roles among columns without names.

    A clock tells the time, at the end one of mixed units too; of the rest a short scale of small numbers tells the
    rating; the first that remain are user and item, in this order. A role that nothing is left for is left out.
    """
    left = list(range(len(columns)))
    ids = [role for role in ("user", "item") if role in wanted]
    found: dict[str, int] = {}
    clocks = [k for k in left if time_unit(columns[k]) in ("s", "ms", "us", "iso")]
    if not clocks and left and _is_late(columns[left[-1]]):
        clocks = left[-1:]
    if "time" in wanted and clocks and len(left) > len(ids):
        found["time"] = clocks[-1]  # ids that look like times stand before the time, as publishers have it
        left.remove(found["time"])
    if "rating" in wanted and len(left) > len(ids):
        scales = [k for k in left if _is_scale(columns[k])]
        numeric = [k for k in left[len(ids) :] if share_numeric(columns[k]) >= _MOSTLY]
        if scales or numeric:
            found["rating"] = _likeliest_scale(columns, scales) if scales else numeric[0]
            left.remove(found["rating"])
    return found | dict(zip(ids, left, strict=False))


def _is_late(values: Values) -> bool:
    """Whether these numbers are as large as moments since 1970 are, in whatever unit."""
    given = given_of(values)
    return share_numeric(values) == 1 and sum(float(one) >= _FROM for one in given) >= _MOSTLY * len(given)


def _is_scale(values: Values) -> bool:
    given = {value for value in values if value}
    if not given or len(given) > _FEW or share_numeric(values) < 1:
        return False
    return all(-100 <= float(value) <= 100 for value in given)


def _likeliest_scale(columns: Sequence[Values], scales: list[int]) -> int:
    """In few rows ids look like a scale too: values up to 10 tell, then the place on the right."""
    return max(scales, key=lambda k: (all(float(value) <= 10 for value in columns[k] if value), k))
