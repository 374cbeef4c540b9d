"""The sandbox's markets: who is listed, from when until when, at what price and turnover.

Codes and names are those of well-known coins; listing dates are only roughly the real ones, prices and turnovers are invented.
The table is the same for every seed. Its dates go on past today: the world keeps living.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import floor, log10

from mdms_pipeline.market import DAY, Instant, instant
from mdms_pipeline.sandbox.model import Nature

WARNED = 30 * DAY  # s before a delisting from which `market_event.warning` is true

# Quote currency: (whole value units in one unit, smallest order, tick in price units where it is not the KRW table).
QUOTES = {"KRW": (1e4, 5_000.0, 0.0), "BTC": (1e8, 5e-5, 1.0), "USDT": (1e6, 0.5, 10_000.0)}

EOK = 1e8  # KRW, the unit in which Korean exchanges speak of turnover

# code, Korean name, English name, price (KRW on 2026-11-22), turnover (EOK a day), listed (UTC), delisted (UTC, or "")
_KRW = (
    ("BTC", "비트코인", "Bitcoin", 143_000_000, 2400, "2017-09-25T03:00", ""),
    ("ETH", "이더리움", "Ethereum", 4_650_000, 1900, "2017-09-25T03:00", ""),
    ("XRP", "엑스알피(리플)", "XRP", 3_320, 2200, "2017-09-25T03:00", ""),
    ("SOL", "솔라나", "Solana", 214_000, 820, "2021-10-15T06:00", ""),
    ("DOGE", "도지코인", "Dogecoin", 243, 640, "2021-02-24T08:30", ""),
    ("USDT", "테더", "Tether", 1_447, 1300, "2024-06-19T01:00", ""),
    ("ADA", "에이다", "Cardano", 683, 240, "2017-10-01T00:00", ""),
    ("TRX", "트론", "TRON", 416, 130, "2018-04-05T02:00", ""),
    ("LINK", "체인링크", "Chainlink", 21_350, 150, "2020-08-14T07:00", ""),
    ("AVAX", "아발란체", "Avalanche", 22_480, 110, "2022-02-22T06:00", ""),
    ("SUI", "수이", "Sui", 2_510, 330, "2023-05-03T12:00", ""),
    ("XLM", "스텔라루멘", "Stellar", 386, 95, "2017-09-25T03:00", ""),
    ("BCH", "비트코인캐시", "Bitcoin Cash", 742_500, 74, "2017-09-25T03:00", ""),
    ("HBAR", "헤데라", "Hedera", 228, 120, "2020-02-06T05:00", ""),
    ("SHIB", "시바이누", "Shiba Inu", 0.0131, 88, "2021-11-08T05:00", ""),
    ("DOT", "폴카닷", "Polkadot", 3_585, 63, "2020-09-15T02:00", ""),
    ("PEPE", "페페", "Pepe", 0.00712, 210, "2024-11-15T04:00", ""),
    ("NEAR", "니어프로토콜", "NEAR Protocol", 3_180, 71, "2022-02-22T06:30", ""),
    ("ETC", "이더리움클래식", "Ethereum Classic", 20_960, 58, "2017-09-25T03:00", ""),
    ("APT", "앱토스", "Aptos", 4_105, 69, "2022-10-19T01:00", ""),
    ("UNI", "유니스왑", "Uniswap", 9_420, 66, "2025-02-13T05:00", ""),
    ("AAVE", "에이브", "Aave", 268_300, 42, "2020-12-18T03:00", ""),
    ("ENA", "에테나", "Ethena", 412, 145, "2025-07-11T07:00", ""),
    ("ONDO", "온도파이낸스", "Ondo", 787, 97, "2024-12-09T06:00", ""),
    ("VET", "비체인", "VeChain", 22.4, 31, "2018-08-17T04:00", ""),
    ("ATOM", "코스모스", "Cosmos", 3_615, 34, "2019-05-14T06:00", ""),
    ("POL", "폴리곤에코시스템토큰", "POL", 218, 43, "2021-09-10T04:30", ""),
    ("ARB", "아비트럼", "Arbitrum", 347, 78, "2023-03-24T02:00", ""),
    ("ALGO", "알고랜드", "Algorand", 231, 46, "2019-06-26T07:00", ""),
    ("SEI", "세이", "Sei", 214, 85, "2023-08-17T02:00", ""),
    ("STX", "스택스", "Stacks", 498, 52, "2019-11-12T03:00", ""),
    ("WLD", "월드코인", "Worldcoin", 986, 180, "2025-09-09T05:00", ""),
    ("TRUMP", "오피셜트럼프", "OFFICIAL TRUMP", 10_240, 160, "2025-02-13T07:00", ""),
    ("BONK", "봉크", "Bonk", 0.0158, 92, "2024-11-21T06:00", ""),
    ("INJ", "인젝티브", "Injective", 9_870, 27, "2025-05-29T05:00", ""),
    ("IMX", "이뮤터블엑스", "Immutable X", 489, 25, "2021-12-16T04:30", ""),
    ("GRT", "더그래프", "The Graph", 84.5, 24, "2021-02-09T05:00", ""),
    ("RENDER", "렌더토큰", "Render", 3_325, 36, "2023-05-18T05:00", ""),
    ("SAND", "샌드박스", "The Sandbox", 297, 51, "2020-11-10T03:00", ""),
    ("MANA", "디센트럴랜드", "Decentraland", 334, 33, "2019-04-09T05:00", ""),
    ("AXS", "엑시인피니티", "Axie Infinity", 1_786, 22, "2020-12-23T02:00", ""),
    ("THETA", "쎄타토큰", "Theta Token", 694, 17, "2019-04-16T05:00", ""),
    ("FLOW", "플로우", "Flow", 361, 14, "2021-01-28T01:00", ""),
    ("XTZ", "테조스", "Tezos", 826, 20, "2019-11-21T04:00", ""),
    ("EGLD", "멀티버스엑스", "MultiversX", 13_870, 12, "2022-11-22T05:00", ""),
    ("NEO", "네오", "NEO", 7_245, 13, "2017-09-30T00:00", ""),
    ("GAS", "가스", "GAS", 3_590, 16, "2018-03-02T04:00", ""),
    ("QTUM", "퀀텀", "Qtum", 2_618, 18, "2017-09-25T03:00", ""),
    ("IOTA", "아이오타", "IOTA", 209, 15, "2018-05-11T05:00", ""),
    ("CHZ", "칠리즈", "Chiliz", 48.3, 61, "2019-11-26T06:00", ""),
    ("BTT", "비트토렌트", "BitTorrent", 0.000642, 28, "2019-02-08T09:00", ""),
    ("BSV", "비트코인에스브이", "Bitcoin SV", 30_480, 11, "2018-11-15T08:00", ""),
    ("BTG", "비트코인골드", "Bitcoin Gold", 18_730, 4.2, "2017-10-30T06:00", "2025-01-23T06:00"),
    ("WAVES", "웨이브", "Waves", 1_318, 6.5, "2018-02-23T08:00", "2026-09-15T06:00"),
    ("ZRX", "제로엑스", "0x Protocol", 298, 8.1, "2018-06-05T05:00", ""),
    ("BAT", "베이직어텐션토큰", "Basic Attention Token", 246, 19, "2018-07-19T05:00", ""),
    ("KNC", "카이버네트워크", "Kyber Network", 427, 5.8, "2018-08-09T05:00", ""),
    ("ICX", "아이콘", "ICON", 138, 7.4, "2018-06-28T05:00", "2026-12-18T06:00"),
    ("ONT", "온톨로지", "Ontology", 149, 5.1, "2018-07-27T05:00", ""),
    ("ZIL", "질리카", "Zilliqa", 12.7, 9.3, "2018-08-02T05:00", ""),
    ("IOST", "아이오에스티", "IOST", 4.11, 6.2, "2018-09-14T05:00", ""),
    ("POWR", "파워렛저", "Power Ledger", 187, 7.7, "2018-10-05T05:00", ""),
    ("STEEM", "스팀", "Steem", 172, 10.5, "2017-10-12T00:00", ""),
    ("HIVE", "하이브", "Hive", 243, 8.8, "2020-04-01T04:00", ""),
    ("SC", "시아코인", "Siacoin", 3.74, 5.5, "2018-10-19T05:00", ""),
    ("STORJ", "스토리지", "Storj", 289, 16, "2018-01-05T04:00", ""),
    ("ARK", "아크", "Ark", 512, 9.6, "2017-10-20T00:00", ""),
    ("GLM", "골렘", "Golem", 298, 4.4, "2018-07-12T05:00", ""),
    ("SNT", "스테이터스네트워크토큰", "Status Network Token", 31.2, 7.1, "2017-12-07T05:00", ""),
    ("MTL", "메탈", "Metal DAO", 724, 6.6, "2017-12-15T05:00", ""),
    ("LSK", "리스크", "Lisk", 386, 3.9, "2017-10-25T00:00", ""),
    ("ARDR", "아더", "Ardor", 107, 3.3, "2017-10-26T00:00", ""),
    ("STRAX", "스트라티스", "Stratis", 46.8, 5.2, "2017-11-08T00:00", ""),
    ("ELF", "엘프", "aelf", 247, 2.4, "2019-01-24T05:00", ""),
    ("CVC", "시빅", "Civic", 97.1, 6.9, "2018-12-12T05:00", ""),
    ("CRO", "크로노스", "Cronos", 158, 21, "2018-12-14T05:00", ""),
    ("JST", "저스트", "JUST", 52.6, 4.7, "2020-05-07T04:00", ""),
    ("SUN", "썬", "Sun Token", 33.1, 3.6, "2021-12-02T04:00", ""),
    ("AERGO", "아르고", "Aergo", 82.4, 12.5, "2019-05-30T05:00", ""),
    ("MOC", "모스코인", "Moss Coin", 78.9, 3.1, "2019-10-17T04:00", ""),
    ("TFUEL", "쎄타퓨엘", "Theta Fuel", 26.5, 2.9, "2019-06-20T05:00", ""),
    ("ANKR", "앵커", "Ankr", 14.6, 11.2, "2019-08-08T05:00", ""),
    ("HUNT", "헌트", "Hunt", 267, 2.6, "2019-12-27T04:00", ""),
    ("BORA", "보라", "BORA", 74.2, 5.9, "2020-01-30T05:00", ""),
    ("MED", "메디블록", "MediBloc", 5.83, 4.9, "2019-07-04T05:00", ""),
    ("MLK", "밀크", "MiL.k", 147, 2.2, "2020-05-14T04:00", ""),
    ("STPT", "에스티피", "Standard Tokenization Protocol", 68.4, 2.7, "2020-05-21T04:00", "2027-03-22T06:00"),
    ("META", "메타디움", "Metadium", 22.9, 1.9, "2019-12-12T04:00", ""),
    ("KAVA", "카바", "Kava", 226, 5.6, "2020-02-27T04:00", ""),
    ("XEC", "이캐시", "eCash", 0.0214, 6.1, "2021-08-18T05:00", ""),
    ("STMX", "스톰엑스", "StormX", 3.92, 1.8, "2018-03-21T05:00", "2025-06-09T06:00"),
    ("CELO", "셀로", "Celo", 378, 9.1, "2021-11-18T04:00", ""),
    ("1INCH", "1인치네트워크", "1inch Network", 268, 13, "2022-04-19T04:00", ""),
    ("MASK", "마스크네트워크", "Mask Network", 1_256, 17, "2023-07-20T05:00", ""),
    ("BLUR", "블러", "Blur", 72.3, 14.5, "2023-06-15T05:00", ""),
    ("MINA", "미나", "Mina", 172, 8.5, "2023-04-19T05:00", ""),
    ("GMT", "스테픈", "STEPN", 41.8, 12, "2022-05-03T05:00", ""),
    ("ASTR", "아스타", "Astar", 23.4, 6.8, "2023-10-12T05:00", ""),
    ("ID", "스페이스아이디", "SPACE ID", 143, 9.8, "2023-11-02T05:00", ""),
    ("PYTH", "피스네트워크", "Pyth Network", 147, 24, "2025-10-01T05:00", ""),
    ("AKT", "아카시네트워크", "Akash Network", 986, 3.7, "2024-01-25T05:00", ""),
    ("ZETA", "제타체인", "ZetaChain", 168, 19, "2024-02-02T05:00", ""),
    ("AUCTION", "바운스토큰", "Bounce", 9_130, 15, "2024-02-22T05:00", ""),
    ("STG", "스타게이트파이낸스", "Stargate Finance", 217, 8.2, "2024-03-14T05:00", ""),
    ("MNT", "맨틀", "Mantle", 1_872, 54, "2024-05-23T05:00", ""),
    ("ZRO", "레이어제로", "LayerZero", 2_216, 26, "2024-06-20T12:00", ""),
    ("BLAST", "블라스트", "Blast", 2.36, 10, "2024-06-27T05:00", ""),
    ("TAIKO", "타이코", "Taiko", 314, 6.3, "2024-07-18T05:00", ""),
    ("ATH", "에이셔", "Aethir", 38.7, 11.5, "2024-08-08T05:00", ""),
    ("G", "그래비티", "Gravity", 12.4, 4.1, "2024-08-15T05:00", ""),
    ("UXLINK", "유엑스링크", "UXLINK", 418, 29, "2024-09-05T05:00", "2025-11-03T06:00"),
    ("SAFE", "세이프", "Safe", 347, 5.3, "2024-10-02T05:00", ""),
    ("CARV", "카브", "CARV", 286, 7.2, "2024-10-10T05:00", ""),
    ("DRIFT", "드리프트", "Drift", 642, 6.0, "2024-11-08T05:00", ""),
    ("PENDLE", "펜들", "Pendle", 4_380, 23, "2024-12-19T05:00", ""),
    ("MOVE", "무브먼트", "Movement", 128, 48, "2024-12-09T13:00", ""),
    ("MEW", "캣인어독스월드", "cat in a dogs world", 2.87, 18.5, "2024-12-12T05:00", ""),
    ("PENGU", "펏지펭귄", "Pudgy Penguins", 27.3, 132, "2024-12-17T14:00", ""),
    ("AHT", "아하토큰", "AhaToken", 8.16, 0.9, "2021-06-17T05:00", ""),
    ("CKB", "너보스", "Nervos Network", 5.46, 7.9, "2025-01-09T05:00", ""),
    ("VTHO", "비토르토큰", "VeThor Token", 2.08, 3.4, "2025-01-16T05:00", ""),
    ("SONIC", "소닉SVM", "Sonic SVM", 247, 8.7, "2025-01-07T12:00", ""),
    ("ANIME", "애니메코인", "Animecoin", 16.2, 10.8, "2025-01-23T14:00", ""),
    ("BERA", "베라체인", "Berachain", 2_480, 22, "2025-02-06T13:00", ""),
    ("LAYER", "솔레이어", "Solayer", 342, 14, "2025-02-11T14:00", ""),
    ("KAITO", "카이토", "KAITO", 1_327, 38, "2025-02-20T13:00", ""),
    ("RED", "레드스톤", "RedStone", 476, 7.0, "2025-03-06T05:00", ""),
    ("NIL", "닐리온", "Nillion", 438, 6.4, "2025-03-24T14:00", ""),
    ("WAL", "월러스", "Walrus", 423, 19.5, "2025-03-27T14:00", ""),
    ("ORCA", "오르카", "Orca", 1_934, 5.7, "2025-04-03T05:00", ""),
    ("DEEP", "딥북", "DeepBook", 121, 8.4, "2025-04-17T05:00", ""),
    ("SIGN", "사인", "Sign", 96.4, 9.4, "2025-04-28T12:00", ""),
    ("SOPH", "소폰", "Sophon", 41.5, 7.6, "2025-05-28T13:00", ""),
    ("LA", "라그랑주", "Lagrange", 512, 12.2, "2025-06-04T13:00", ""),
    ("NEWT", "뉴턴프로토콜", "Newton Protocol", 372, 10.1, "2025-06-24T14:00", ""),
    ("MOODENG", "무뎅", "Moo Deng", 128, 16.5, "2025-07-03T05:00", ""),
    ("ERA", "칼데라", "Caldera", 784, 9.0, "2025-07-17T13:00", ""),
    ("PROVE", "서싱트", "Succinct", 1_086, 8.0, "2025-08-06T05:00", ""),
    ("CYBER", "사이버", "Cyber", 1_842, 20, "2025-08-12T05:00", ""),
    ("WLFI", "월드리버티파이낸셜", "World Liberty Financial", 236, 75, "2025-09-01T13:00", ""),
    ("LINEA", "리네아", "Linea", 31.4, 27, "2025-09-10T14:00", ""),
    ("ZKC", "바운드리스", "Boundless", 612, 31, "2025-09-15T14:00", ""),
    ("XPL", "플라즈마", "Plasma", 874, 44, "2025-09-25T13:00", ""),
    ("MIRA", "미라네트워크", "Mira Network", 1_243, 11.8, "2025-09-26T13:00", ""),
    ("DOOD", "두들즈", "Doodles", 9.86, 6.7, "2025-10-14T05:00", ""),
    ("IP", "스토리", "Story", 7_640, 39, "2025-04-24T05:00", ""),
    ("HOT", "홀로", "Holo", 1.43, 4.0, "2026-01-15T05:00", ""),
    ("LUNC", "테라클래식", "Terra Classic", 0.0842, 13.5, "2026-01-29T05:00", ""),
    ("FLOKI", "플로키", "FLOKI", 0.117, 33, "2026-02-12T05:00", ""),
    ("NFT", "에이피이앤에프티", "APENFT", 0.000587, 5.0, "2022-01-20T05:00", ""),
    ("SATS", "사츠", "SATS", 0.0000386, 8.3, "2026-03-05T05:00", ""),
    ("CHEEMS", "침스", "Cheems", 0.00163, 4.6, "2026-03-26T05:00", ""),
    ("BABYDOGE", "베이비도지코인", "Baby Doge Coin", 0.0000114, 2.3, "2026-04-09T05:00", ""),
    ("WIN", "윙크링크", "WINkLink", 0.0614, 1.3, "2022-05-26T05:00", ""),
    ("REEF", "리프", "Reef", 0.382, 0.65, "2021-09-30T05:00", ""),
    ("DENT", "덴트", "Dent", 0.874, 0.8, "2019-03-14T05:00", ""),
    ("MEME", "밈코인", "Memecoin", 3.18, 1.6, "2023-11-16T05:00", ""),
    ("NXPC", "넥스페이스", "NEXPACE", 687, 34, "2025-05-15T06:00", ""),
    ("MBL", "무비블록", "MovieBloc", 2.64, 0.45, "2020-04-23T05:00", ""),
    ("AQT", "알파쿼크", "Alpha Quark Token", 912, 0.32, "2020-10-08T05:00", ""),
    ("DKA", "디카르고", "dKargo", 14.9, 0.38, "2020-06-04T05:00", ""),
    ("CBK", "코박토큰", "Cobak Token", 538, 0.24, "2021-02-18T05:00", ""),
    ("TOKAMAK", "토카막네트워크", "Tokamak Network", 1_067, 0.15, "2020-09-24T05:00", ""),
    ("QKC", "쿼크체인", "QuarkChain", 7.68, 0.55, "2018-12-20T05:00", ""),
    ("FCT2", "피르마체인", "Firmachain", 38.2, 0.11, "2021-03-25T05:00", "2027-05-24T06:00"),
    ("SSX", "썸씽", "SOMESING", 9.42, 0.19, "2020-02-13T05:00", ""),
    ("YGG", "일드길드게임즈", "Yield Guild Games", 187, 6.9, "2026-05-14T05:00", ""),
    ("GNO", "노시스", "Gnosis", 187_400, 1.1, "2026-05-28T05:00", ""),
    ("PAXG", "팍스골드", "PAX Gold", 5_870_000, 9.9, "2026-06-11T05:00", ""),
    ("QNT", "퀀트", "Quant", 126_700, 4.3, "2026-06-25T05:00", ""),
    ("YFI", "연파이낸스", "yearn.finance", 6_940_000, 2.0, "2026-07-09T05:00", ""),
    ("COMP", "컴파운드", "Compound", 57_350, 7.3, "2026-07-23T05:00", ""),
    ("KSM", "쿠사마", "Kusama", 18_640, 1.5, "2026-08-06T05:00", ""),
    ("DASH", "대시", "Dash", 84_250, 3.2, "2026-08-20T05:00", ""),
    ("CRV", "커브", "Curve DAO", 847, 18, "2026-09-03T05:00", ""),
    ("LDO", "리도다오", "Lido DAO", 1_143, 15.5, "2026-09-17T05:00", ""),
    ("FIL", "파일코인", "Filecoin", 2_286, 25, "2026-10-01T05:00", ""),
    ("ICP", "인터넷컴퓨터", "Internet Computer", 6_180, 30, "2026-10-22T05:00", ""),
    ("TAO", "비트텐서", "Bittensor", 534_500, 47, "2026-11-05T05:00", ""),
    ("KAS", "카스파", "Kaspa", 72.8, 35, "2026-11-17T05:00", ""),
    ("FET", "인공초지능연합", "Artificial Superintelligence Alliance", 387, 41, "2026-12-03T05:00", ""),
    ("TIA", "셀레스티아", "Celestia", 1_412, 37, "2026-12-22T05:00", ""),
    ("JUP", "주피터", "Jupiter", 486, 29, "2027-01-21T05:00", ""),
    ("DYDX", "디와이디엑스", "dYdX", 462, 13, "2027-03-11T05:00", ""),
    ("SNX", "신세틱스", "Synthetix", 918, 11, "2027-06-10T05:00", ""),
    ("RUNE", "토르체인", "THORChain", 1_387, 14, "2027-10-14T05:00", ""),
)  # fmt: skip

# Other quote currencies, so that a client has to filter: code, names, price and turnover in that currency, listed.
_OTHERS = (
    ("BTC-ETH", "이더리움", "Ethereum", 0.0325, 1.9, "2017-09-25T03:00"),
    ("BTC-XRP", "엑스알피(리플)", "XRP", 0.0000232, 1.2, "2017-09-25T03:00"),
    ("BTC-SOL", "솔라나", "Solana", 0.0015, 0.7, "2021-10-15T06:00"),
    ("USDT-BTC", "비트코인", "Bitcoin", 98_800.0, 640_000.0, "2017-11-03T00:00"),
    ("USDT-ETH", "이더리움", "Ethereum", 3_212.0, 410_000.0, "2017-11-03T00:00"),
    ("USDT-XRP", "엑스알피(리플)", "XRP", 2.294, 370_000.0, "2017-11-03T00:00"),
)

PEGGED = {"KRW-USDT": (0.0, 0.003)}  # code: (share of the common factor, own daily move); the others draw theirs


@dataclass(frozen=True)
class Market:
    """One market of the sandbox. `origin` names its randomness and survives a rename; `scale` is a redenomination's factor."""

    code: str
    korean_name: str
    english_name: str
    price: float  # quote currency, on 2026-11-22, before `scale`
    turnover: float  # quote currency per ordinary day
    listed_at: Instant
    delisted_at: Instant | None = None
    warning: bool = False  # a warning for good; the last 30 days before a delisting warn by themselves
    origin: str = ""
    scale: int = 1

    @property
    def quote(self) -> str:
        """`KRW` of `KRW-BTC`."""
        return self.code.split("-")[0]

    def alive(self, at: float) -> bool:
        """Is it listed at that instant?"""
        return self.listed_at <= at and (self.delisted_at is None or at < self.delisted_at)

    def warned(self, at: float) -> bool:
        """Its `market_event.warning` at that instant."""
        return self.warning or (self.delisted_at is not None and at >= self.delisted_at - WARNED)


def hashed(*words: str) -> int:
    """A 63-bit number named by `words`, the same in every process."""
    return int.from_bytes(blake2b("/".join(words).encode(), digest_size=8).digest(), "big") >> 1


def lots(price: float, turnover: float) -> float:
    """Whole volume units in one unit of the base: 1e8 as on the exchange, fewer where a year's volume would not fit an int64.

    1e17 leaves a factor of 90 for cheaper and busier years than the reference.
    """
    return 10.0 ** min(max(floor(log10(1e17 * price / (365 * turnover))), 0), 8)


def nature(market: Market, seed: int) -> Nature:
    """What the kernel has to know of `market` in the world of `seed`."""
    origin = market.origin or market.code
    value_units, min_order, flat_tick = QUOTES[market.quote]
    dice = hashed(origin, "character")
    drawn = (0.6 + dice % 1000 / 1250, 0.012 + dice // 1000 % 1000 / 40_000)  # beta 0.6 to 1.4, own move 1.2 to 3.7 % a day
    beta, daily_move = PEGGED.get(origin, (1.0, 0.006) if origin.endswith("-BTC") else drawn)
    return Nature(
        key=hashed(str(seed), origin),
        common=hashed(str(seed), "all markets"),
        listed_at=market.listed_at,
        price=float(market.price),
        beta=beta,
        daily_move=daily_move,
        turnover=float(market.turnover),
        lots=lots(market.price, market.turnover),
        value_units=value_units,
        min_order=min_order,
        flat_tick=flat_tick,
    )


def first_markets() -> dict[str, Market]:
    """The world before anybody changed it, by code."""
    krw = (
        Market(f"KRW-{code}", korean, english, price, turnover * EOK, instant(listed), instant(gone) if gone else None)
        for code, korean, english, price, turnover, listed, gone in _KRW
    )
    others = (Market(code, korean, english, price, turnover, instant(listed)) for code, korean, english, price, turnover, listed in _OTHERS)
    return {market.code: market for market in (*krw, *others)}
