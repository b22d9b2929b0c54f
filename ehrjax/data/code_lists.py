"""Lists of codes, as patterns over whole codes: diseases in SNOMED CT, ICD-9-CM and ICD-10-CM, and deterioration.

`*` stands for any characters and `?` for one. A list of a disease names diagnoses only: the same number in a list of
procedures or drugs does not match.
"""

from collections.abc import Iterable


def _each(prefixes: Iterable[str], stems: Iterable[str]) -> tuple[str, ...]:
    return tuple(prefix + stem for prefix in prefixes for stem in stems)


_SNOMED_PREFIXES = ("DIAGNOSIS//SNOMED*//", "CONDITION//SNOMED*//", "SNOMED//")
_ICD9_PREFIXES = (
    "DIAGNOSIS//ICD9*//",
    "CONDITION//ICD9*//",
    "ICD9CM//",
    "DIAGNOSIS//ICD//9//",
)  # procedures have a 250
_ICD10_PREFIXES = ("DIAGNOSIS//ICD10*//", "CONDITION//ICD10*//", "ICD10CM//", "DIAGNOSIS//ICD//10//", "", "D")


def _snomed(numbers: str) -> tuple[str, ...]:
    return _each(_SNOMED_PREFIXES, numbers.split())


def _icd9(stems: str) -> tuple[str, ...]:
    """Stems, which may end in `*`; one with a dot also stands for its form without."""
    return _each(_ICD9_PREFIXES, _with_and_without_dot(stems))


def _icd10(stems: str) -> tuple[str, ...]:
    return _each(_ICD10_PREFIXES, _with_and_without_dot(stems))


def _with_and_without_dot(stems: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form for stem in stems.split() for form in (stem, stem.replace(".", ""))))


# Type 2 diabetes and the complications that imply it (prediabetes, 714628002 and 15777000, is none).
TYPE_2_DIABETES = (
    *_snomed("44054006 313436004 359642000 190331003 199230006 237599002 443694000 127013003 422034002"),
    *_snomed("1551000119108 1501000119109 97331000119101 368581000119106 90781000119102 157141000119108"),
    *_snomed("60951000119105 60971000119101 421986006"),
    *_icd9("250 250.0 250?0 250?2 250.?0 250.?2"),
    *_icd10("E11*"),
)
ANY_DIABETES = (
    *TYPE_2_DIABETES,
    *_snomed("73211009 46635009 8801005 5969009 427089005 11530004 4855003"),
    *_icd9("250*"),
    *_icd10("E08* E09* E10* E13* E14*"),
)
HYPERTENSION = (
    *_snomed("59621000 38341003 1201005"),
    *_icd9("401* 402* 403* 404* 405*"),
    *_icd10("I10* I11* I12* I13* I15*"),
)
# Stage 3 and above, or without a stage; diabetic nephropathy is no stage.
CHRONIC_KIDNEY_DISEASE = (
    *_snomed("433144002 700378005 700379002 431857002 433146000 46177005 90688005 709044004"),
    *_icd9("585 585.3 585.4 585.5 585.6 585.9"),
    *_icd10("N18 N18.3* N18.4* N18.5* N18.6* N18.9*"),
)
HEART_FAILURE = (
    *_snomed("84114007 88805009 42343007 48447003 56675007 10633002 85232009 367363000 418304008 417996009"),
    *_snomed("441481004 441530006 443253003 443254009"),
    *_icd9("428*"),
    *_icd10("I50*"),
)
COPD = (*_snomed("13645005 185086009 87433001"), *_icd9("491* 492* 496*"), *_icd10("J43* J44*"))

# Chronic conditions. SNOMED: the codes that the pooled Synthea folders of several sources leave open (no STOP) in nine
# of ten rows, without social findings, histories, and single events that are never closed (stroke, infarction, sepsis,
# overdose, loss of teeth); with codes of the same diseases that those folders lack. A description's "(finding)" decides
# nothing: obesity, prediabetes and chronic pain are findings. ICD: the chronic diseases among common three-digit stems.
CHRONIC_CONDITIONS = (
    *ANY_DIABETES,
    *HYPERTENSION,
    *CHRONIC_KIDNEY_DISEASE,
    *HEART_FAILURE,
    *COPD,
    *_snomed("278860009 162864005 408512008 271737000 82423001 1121000119107 714628002 15777000 40055000 414545008"),
    *_snomed("237602007 124171000119105 427419006 53741008 55822004 302870006 431855005 431856006 239873007 239872002"),
    *_snomed("201834006 64859006 203082005 197927001 6525002 7200002 5602001 49436004 128613002 84757009 80394007"),
    *_snomed("39898005 78275009 73430006 26929004 230265002 254637007 254837009 126906006 92691004 370143000"),
    *_snomed("203646004 60573004 48724000 60234000 68496003 90560007 195967001 233678006 83664006 69896004 200936003"),
    *_icd9("244* 272* 274* 278.0* 295* 296* 332* 340* 345* 346* 414* 416* 427.3* 440* 493* 571* 585* 714* 715* 733.0*"),
    *_icd10("E03* E66* E78* F20* F31* F33* G20* G30* G35* G40* G43* G47.3* I25* I27* I48* I70* J45* K70* K74*"),
    *_icd10("M05* M06* M10* M15* M16* M17* M18* M19* M81* N18*"),
)

# Deterioration in hospital, apart from death. Codes must carry the hour: the procedure codes of ICD are dated by the
# day, which would call a patient at risk who has been ventilated since the morning.
# MIMIC-IV: with `//MIMIC//` as read here, else as in its MEDS form. Transfers tell of an hour in intensive care that
# icustays leaves out, and serve where that table is missing.
INTENSIVE_CARE = (
    *("ICU_ADMISSION", "ICU_ADMISSION//*"),
    *_each(("TRANSFER//*", "TRANSFER_TO//*"), ("Intensive Care Unit*", "Coronary Care Unit*", "Trauma SICU*")),
    *_each(("ENCOUNTER_TYPE//SNOMED*//", "PROCEDURE//SNOMED*//", "SNOMED//"), ("305351004", "397821002")),
)
# Norepinephrine, epinephrine, phenylephrine, vasopressin, dopamine and angiotensin II as infusions. Where the route is
# not known, without epinephrine and phenylephrine, which are given into muscles, eyes and noses as well.
_INFUSED = "221906 221289 229617 221749 229630 229631 229632 222315 221662 229709 229764"
_PRESSORS_BY_VEIN = "7512 11149 3628 242969"  # norepinephrine, vasopressin, dopamine; norepinephrine for injection
VASOPRESSORS = (
    *_each(("INFUSION//MIMIC//", "INFUSION_START//"), _INFUSED.split()),
    *_each(("MEDICATION//RXNORM//", "RXNORM//"), _PRESSORS_BY_VEIN.split()),
)
# Invasive or not. Intubation by itself belongs to anaesthesia.
VENTILATION = (
    *_each(("PROCEDURE//MIMIC//", "PROCEDURE//START//"), ("225792", "225794")),
    *_each(("PROCEDURE//SNOMED*//", "SNOMED//"), ("40617009", "26763009", "243150007", "428311008")),
)
DETERIORATION = (*INTENSIVE_CARE, *VASOPRESSORS, *VENTILATION)
