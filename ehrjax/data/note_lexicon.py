"""Phrases of clinical notes: what each feature is called, and what says that a mention is not the patient's present.

A phrase is words in lower case; `a|b` in a word's place stands for either, and a word ends with `?` where it may be
missing. Punctuation is a word of its own ("n / v"). Where phrases overlap the longest one counts.

The context phrases follow NegEx (Chapman et al., 2001, Journal of Biomedical Informatics 34:301) and its extension to
other experiencers and hypothetical statements, ConText (Harkema et al., 2009, ibid. 42:839).
"""

# fmt: off
# Group -> feature -> phrases. The names are shown in tables as "group: feature".
FEATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "symptom": {
        "shortness of breath": (
            "shortness|short of breath", "dyspnea|dyspnoea|dyspneic|breathless|breathlessness|sob|orthopnea",
            "difficulty|trouble|difficulties breathing", "labored breathing|respirations", "breathing heavily",
            "winded", "wob", "work of breathing", "paroxysmal nocturnal dyspnea", "out of breath",
        ),
        "cough": ("cough|coughing|coughs|coughed",),
        "wheezing": ("wheeze|wheezes|wheezing|wheezy",),
        "chest pain": (
            "chest pain|pains|discomfort|pressure|tightness|heaviness", "angina|anginal", "pain in his|her|the chest",
            "substernal|retrosternal|precordial|pleuritic chest? pain|pressure",
        ),
        "palpitations": (
            "palpitation|palpitations", "heart racing", "racing heart", "irregular heartbeat|heartbeats",
        ),
        "fever": (
            "fever|fevers|febrile|pyrexia", "high temperature", "temp spike", "spiked a temp|temperature|fever",
        ),
        "chills or sweats": (
            "chill|chills|rigor|rigors", "night? sweats|sweating", "diaphoresis|diaphoretic", "clammy",
        ),
        "fatigue or weakness": (
            "fatigue|fatigued|fatigues|tired|tiredness|malaise|exhausted|exhaustion", "weakness|weak", "low energy",
            "lack of energy", "asthenia",
        ),
        "nausea or vomiting": (
            "nausea|nauseous|nauseated", "vomit|vomits|vomiting|vomited|emesis", "nausea and|or|/ vomiting", "n / v",
            "throwing up",
        ),
        "diarrhea": ("diarrhea|diarrhoea|diarrheal", "loose|watery stool|stools"),
        "constipation": ("constipation|constipated", "obstipation"),
        "abdominal pain": (
            "abdominal|belly|stomach|epigastric|flank pain|pains|discomfort|cramping|cramps|tenderness",
            "ruq|rlq|luq|llq pain|tenderness", "pain in his|her|the abdomen|stomach|belly",
            "stomachache|stomachaches",
        ),
        "headache": ("headache|headaches|migraine|migraines|cephalgia", "head pain"),
        "back or neck pain": ("low? lower? back pain|pains|discomfort", "neck pain|discomfort|stiffness", "backache"),
        "joint or limb pain": (
            "joint|knee|hip|shoulder|ankle|wrist|elbow|heel|thigh pain|pains|discomfort",
            "leg|arm|hand|foot|calf|finger|extremity pain|pains|discomfort",
            "arthralgia|arthralgias|myalgia|myalgias", "muscle pain|pains|ache|aches", "body aches",
        ),
        "other pain": ("pain|pains|painful", "severe discomfort"),
        "dizziness or syncope": (
            "dizziness|dizzy|lightheadedness|lightheaded|vertigo|presyncope", "light headed|headedness",
            "syncope|syncopal|fainting|fainted", "passed|passing out", "loss of consciousness", "lost consciousness",
        ),
        "swelling": ("edema|oedema|edematous|anasarca", "swelling|swollen", "fluid overload|retention"),
        "weight loss": (
            "weight loss", "lost weight", "losing weight", "unintentional weight? loss", "cachexia|cachectic",
        ),
        "poor intake": (
            "poor|decreased|reduced|diminished appetite|intake", "poor|decreased|reduced oral|po intake",
            "loss of appetite", "anorexia", "not eating", "dehydration|dehydrated",
        ),
        "bleeding": (
            "bleed|bleeding|bleeds|hemorrhage|hemorrhaging", "hematemesis|melena|hematochezia|hemoptysis|hematuria",
            "epistaxis", "nosebleed|nosebleeds", "bloody stool|stools|urine",
            "blood in his|her|the stool|stools|urine", "rectal bleeding", "gi bleed|bleeding",
        ),
        "rash": ("rash|rashes|hives|urticaria|cellulitis",),
        "urinary symptoms": (
            "dysuria", "urinary frequency|urgency|retention|incontinence", "burning with|on urination",
        ),
        "numbness or tingling": ("numbness|numb|tingling|paresthesia|paresthesias",),
        "seizure": ("seizure|seizures|convulsion|convulsions|seizing",),
        "fall": ("fell", "falls", "fall from", "mechanical|ground fall", "recent|unwitnessed|witnessed fall"),
    },
    "mental state": {
        "confusion": (
            "confusion|confused|disoriented|disorientation|delirium|delirious|encephalopathy|encephalopathic",
            "altered mental status", "change|changes in mental status", "mental status change|changes", "ams",
            "hallucination|hallucinations|hallucinating", "not oriented",
        ),
        "drowsy or unresponsive": (
            "lethargy|lethargic|drowsy|drowsiness|somnolent|somnolence|obtunded|obtundation|stuporous|comatose",
            "unresponsive|unarousable|unconscious", "difficult|hard to arouse|rouse", "less responsive|alert",
            "minimally|poorly responsive",
        ),
        "agitation": ("agitation|agitated|combative|restless|restlessness", "pulling at lines|tubes"),
        "anxiety": ("anxiety|anxious|panic", "nervous|nervousness"),
        "depressed mood": (
            "depression|depressed", "low mood", "tearful", "suicidal", "suicidal ideation|ideations|thoughts",
            "hopeless",
        ),
        "alert and oriented": (
            "alert and oriented|awake|appropriate", "awake ,? and? alert", "oriented x|times 3|three|4|four",
            "oriented to person", "alert", "a & o", "aaox3|aox3|aaox4|aox4",
        ),
    },
    "deterioration": {
        "low blood pressure": (
            "hypotension|hypotensive", "low|dropping|soft blood pressure|pressures|bp", "bp low|soft|dropping|labile",
        ),
        "fast heart rate": ("tachycardia|tachycardic", "rapid heart rate", "rvr", "rapid ventricular response|rate"),
        "slow heart rate": ("bradycardia|bradycardic",),
        "arrhythmia": (
            "arrhythmia|arrhythmias|dysrhythmia", "atrial fibrillation|flutter", "afib|fibrillation",
            "ventricular tachycardia|fibrillation", "vtach|vfib|vt|svt", "supraventricular tachycardia",
        ),
        "fast or laboured breathing": (
            "tachypnea|tachypneic|tachypnoea", "accessory muscle|muscles use?", "use of accessory muscles",
            "increased|increasing work of breathing", "increased wob", "rapid shallow? breathing", "retractions",
        ),
        "respiratory failure": (
            "respiratory distress|failure|arrest|decompensation|insufficiency",
            "acute hypoxic|hypoxemic respiratory failure", "ards", "airway compromise",
        ),
        "low oxygen": (
            "hypoxia|hypoxic|hypoxemia|hypoxemic", "desaturation|desaturations|desaturated|desaturating|desats|desat",
            "low oxygen|o2 saturation|saturations|sats|levels", "cyanosis|cyanotic", "sats dropped|dropping",
        ),
        "sepsis": ("sepsis|septic|septicemia|urosepsis|bacteremia|bacteremic", "sirs"),
        "shock": ("shock", "septic|cardiogenic|hypovolemic|hemorrhagic shock", "hypoperfusion", "mottled|mottling"),
        "cardiac arrest": ("cardiac|cardiopulmonary arrest", "code blue", "pea arrest", "asystole|pulseless"),
        "kidney injury or low urine output": (
            "oliguria|oliguric|anuria|anuric", "low|poor|decreased|minimal urine|urinary output",
            "acute renal failure|insufficiency|injury", "acute kidney injury|failure", "aki|arf",
            "worsening creatinine",
        ),
        "high lactate": (
            "elevated|high|rising lactate", "lactate elevated|rising|high", "lactic acidosis", "acidosis",
        ),
        "critically ill": (
            "critically ill", "ill|toxic - appearing", "ill|toxic appearing", "critical condition", "unstable",
            "hemodynamically unstable|compromised", "hemodynamic instability|compromise", "moribund",
            "guarded condition",
        ),
        "worsening": (
            "worsening|worsened|worsens|worse",
            "deteriorated|deteriorating|deterioration|decompensated|decompensating", "declining|declined rapidly",
            "progressively worse",
        ),
        "escalation of care": (
            "rapid response team?", "transfer|transferred|transferring to the? icu|micu|sicu|ccu",
            "icu transfer|admission", "upgraded to icu", "intensive care unit?", "icu", "md|physician|team notified",
            "called to bedside",
        ),
        "comfort care or dnr": (
            "dnr|dni", "do not resuscitate|intubate", "comfort care|measures", "hospice|palliative",
        ),
        "stable or improving": (
            "hemodynamically? stable", "improved|improving|improvement", "no acute|apparent distress", "nad",
            "much better", "feeling|feels|felt|doing better|well", "resting comfortably|quietly",
            "no acute events|issues|changes", "in no distress", "no distress", "no respiratory distress",
            "no events overnight", "comfortable|comfortably",
        ),
    },
    "oxygen": {
        "room air": ("room air", "on ra", "breathing comfortably on room air"),
        "supplemental oxygen": (
            "nasal cannula|cannulae|prongs", "supplemental|home oxygen|o2", "oxygen therapy|requirement|requirements",
            "o2 requirement|requirements", "increasing oxygen|o2", "liters|l nc", "on oxygen|o2", "via|by nc",
            "requiring oxygen|o2", "increased|increasing|escalating oxygen|o2 requirement|requirements|needs|need",
        ),
        "high-flow oxygen or mask": (
            "high - flow", "high flow nasal? cannula?", "hfnc", "non - rebreather",
            "nonrebreather|nrb|non-rebreather", "face|venturi|venti mask", "100 % oxygen|o2",
        ),
        "non-invasive ventilation": (
            "bipap|cpap|niv|nippv|bilevel", "non - invasive ventilation", "noninvasive ventilation",
        ),
        "mechanical ventilation": (
            "ventilator|ventilated|ventilators", "mechanical ventilation", "mechanically ventilated",
            "vent settings?", "on the vent", "tracheostomy",
        ),
    },
    "medication": {
        "vasopressor": (
            "vasopressor|vasopressors|pressor|pressors|norepinephrine|levophed|vasopressin|phenylephrine",
            "neosynephrine", "dopamine|dobutamine|milrinone", "epinephrine drip|gtt|infusion",
        ),
        "sedative": ("propofol|midazolam|versed|dexmedetomidine|precedex|ketamine|sedation|sedated",),
        "benzodiazepine": (
            "lorazepam|ativan|diazepam|valium|clonazepam|klonopin|alprazolam|xanax|benzodiazepine|benzodiazepines",
        ),
        "opioid": (
            "morphine|hydromorphone|dilaudid|fentanyl|oxycodone|percocet|oxycontin|hydrocodone|vicodin|lortab|norco",
            "tramadol|ultram|methadone|codeine|demerol|meperidine|opioid|opioids|narcotic|narcotics|roxicet|darvocet",
        ),
        "antibiotic": (
            "antibiotic|antibiotics|abx|vancomycin|zosyn|piperacillin|ceftriaxone|rocephin|cefepime|cefazolin|ancef",
            "cephalexin|keflex|meropenem|levofloxacin|levaquin|ciprofloxacin|cipro|moxifloxacin|avelox|azithromycin",
            "zithromax|amoxicillin|augmentin|unasyn|ampicillin|clindamycin|doxycycline|metronidazole|flagyl|bactrim",
            "gentamicin|linezolid|penicillin|erythromycin|clarithromycin|biaxin|omnicef|nitrofurantoin|macrobid",
        ),
        "steroid": (
            "prednisone|prednisolone|methylprednisolone|medrol|solumedrol|dexamethasone|decadron|hydrocortisone",
            "steroid|steroids|solu - medrol", "cortisone",
        ),
        "anticoagulant": (
            "heparin|enoxaparin|lovenox|warfarin|coumadin|apixaban|eliquis|rivaroxaban|xarelto|anticoagulation",
        ),
        "antiplatelet": ("aspirin|asa|clopidogrel|plavix|ticagrelor|prasugrel",),
        "diuretic": (
            "furosemide|lasix|torsemide|bumetanide|bumex|hydrochlorothiazide|hctz|spironolactone|aldactone",
            "diuretic|diuretics", "diuresis|diuresed", "chlorthalidone|metolazone|dyazide",
        ),
        "beta blocker": (
            "metoprolol|lopressor|toprol|atenolol|carvedilol|coreg|propranolol|bisoprolol|labetalol|esmolol",
            "beta - blocker|blockers", "beta blocker|blockers|blockade",
        ),
        "ace inhibitor or arb": (
            "lisinopril|enalapril|captopril|ramipril|altace|benazepril|quinapril|losartan|cozaar",
            "valsartan|diovan|irbesartan|olmesartan|benicar|candesartan", "ace inhibitor|inhibitors",
        ),
        "calcium channel blocker": ("amlodipine|norvasc|diltiazem|cardizem|verapamil|nifedipine",),
        "antiarrhythmic": ("amiodarone|digoxin|adenosine|sotalol|flecainide|lidocaine drip",),
        "nitrate": ("nitroglycerin|nitro|isosorbide|imdur|ntg",),
        "statin": (
            "atorvastatin|lipitor|simvastatin|zocor|rosuvastatin|crestor|pravastatin|lovastatin|statin|statins",
        ),
        "insulin": ("insulin|lantus|humalog|novolog|glargine|lispro|nph",),
        "oral antidiabetic": (
            "metformin|glucophage|glipizide|glyburide|glimepiride|pioglitazone|actos|sitagliptin|januvia",
        ),
        "bronchodilator": (
            "albuterol|ventolin|proair|salbutamol|ipratropium|atrovent|combivent|xopenex|levalbuterol|duoneb|duonebs",
            "nebulizer|nebulizers|nebs|neb|inhaler|inhalers|spiriva|tiotropium|advair|symbicort|bronchodilator",
            "bronchodilators",
        ),
        "acid suppression": (
            "omeprazole|prilosec|pantoprazole|protonix|esomeprazole|nexium|lansoprazole|prevacid|famotidine|pepcid",
        ),
        "analgesic": (
            "acetaminophen|tylenol|paracetamol|ibuprofen|motrin|advil|naproxen|aleve|ketorolac|toradol|nsaid|nsaids",
            "meloxicam|mobic|celebrex|celecoxib|anti - inflammatories|inflammatory",
        ),
        "antidepressant": (
            "sertraline|zoloft|fluoxetine|prozac|citalopram|celexa|escitalopram|lexapro|paroxetine|paxil|venlafaxine",
            "effexor|duloxetine|cymbalta|bupropion|wellbutrin|trazodone|amitriptyline|ssri|mirtazapine|remeron",
        ),
        "antipsychotic": ("haloperidol|haldol|quetiapine|seroquel|olanzapine|zyprexa|risperidone|risperdal|abilify",),
        "anticonvulsant": (
            "levetiracetam|keppra|phenytoin|dilantin|valproate|depakote|gabapentin|neurontin|lamictal|tegretol",
        ),
        "intravenous fluid": (
            "iv|intravenous fluid|fluids", "normal saline", "lactated ringers|ringer's",
            "fluid bolus|boluses|resuscitation", "ivf", "saline bolus",
        ),
    },
    "procedure": {
        "intubation": ("intubation|intubated|intubate|reintubated|ett", "endotracheal tube|intubation"),
        "resuscitation": (
            "cpr|rosc", "chest compressions", "cardiopulmonary resuscitation", "defibrillated|defibrillation",
        ),
        "central or arterial line": (
            "central|arterial line|access", "picc line?", "a - line", "port - a - cath", "swan - ganz",
        ),
        "dialysis": ("dialysis|hemodialysis|crrt|cvvh",),
        "transfusion": (
            "transfusion|transfusions|transfused|prbc|prbcs", "packed red blood? cells", "units of blood|ffp",
        ),
        "chest tube": ("chest tube|tubes", "thoracentesis", "thoracostomy"),
        "catheterisation": (
            "catheterization|cath", "cardiac catheterization|cath",
            "angiography|angiogram|angioplasty|stent|stenting|pci",
        ),
        "urinary catheter": ("foley catheter?", "urinary catheter"),
        "computed tomography": ("ct|cta", "ct|cat scan|scans", "computed tomography"),
        "magnetic resonance imaging": ("mri|mra", "mri scan|scans"),
        "x-ray": ("x - ray|rays", "xray|xrays|cxr|radiograph|radiographs", "chest x - ray", "chest film"),
        "ultrasound": ("ultrasound|sonogram|doppler|dopplers|ultrasonography",),
        "echocardiogram": ("echocardiogram|echo|echocardiography|tte|tee",),
        "electrocardiogram": ("ekg|ecg|electrocardiogram|telemetry", "cardiac monitor|monitoring"),
        "endoscopy": ("endoscopy|colonoscopy|egd|bronchoscopy|sigmoidoscopy|cystoscopy",),
        "biopsy or puncture": (
            "biopsy|biopsies|biopsied", "lumbar puncture", "paracentesis", "fine - needle aspiration",
        ),
        "surgery": (
            "surgery|surgeries", "appendectomy|cholecystectomy|hysterectomy|laparotomy|laparoscopy|craniotomy",
            "tonsillectomy|mastectomy|arthroplasty|arthroscopy|laminectomy|resection|amputation|cabg|bypass",
            "transplant", "coronary artery bypass", "c - section", "cesarean section",
        ),
        "blood culture": ("blood|urine|sputum|wound culture|cultures", "pan - cultured", "pancultured"),
    },
}

# What rules a mention out. `FORWARD` phrases reach from their end, `BACKWARD` ones to their start, both no further than
# the end of the sentence or a phrase of TERMINATORS.
FORWARD: dict[str, tuple[str, ...]] = {
    "negated": (
        "no|not|without|denies|denied|denying|deny|never|negative|neither|nor|absent|cannot", "w / o", "none", "non",
        "absence|lack of", "negative for", "free of", "no evidence|sign|signs|history|complaint|complaints of",
        "no known|new|other|further|significant|acute",
        "not have|had|having|been|appear|experience|experiencing|complain",
        "does|do|did|is|are|was|were|has|have|had not",
        "doesn't|don't|didn't|isn't|wasn't|hasn't|haven't|hadn't|aren't", "doesn't|didn't|don't have",
        "ruled out for?", "rules out", "resolution of", "unremarkable for", "has not had", "no longer", "rather than",
        "instead of", "denies any|having", "unable to take|tolerate",
        "discontinue|discontinued|discontinuing|hold|holding|avoid|avoiding|refused|refuses|declined|declines",
        "stopped taking|using?", "weaned|came|taken off", "off of",
        "mother|father|mom|dad|parents|family|wife|husband|daughter|son|sister denies|deny|denied",
    ),
    "family": (
        "family history|hx", "fh|fhx", "mother|father|mom|dad|sister|brother|sisters|brothers|siblings|sibling",
        "son|daughter|sons|daughters|children|aunt|uncle|cousin|grandmother|grandfather|grandparents|grandparent",
        "maternal|paternal|relative|relatives|mother's|father's", "runs in the family",
    ),
    "hypothetical": (
        "if|should|unless|whether", "return for|to|if", "in case of?", "as needed for", "prn for?", "watch for|out",
        "monitor|monitoring|evaluate|evaluation|observe|assess|screen|screening|check for",
        "risk|risks|risk|chance of|for", "to prevent|avoid", "prevention|prophylaxis of|for|against", "rule out",
        "r / o", "could be|have|cause", "might", "precautions", "call for|if|with", "come back", "go to the er|ed",
        "side effect|effects", "complications", "warned|counseled|educated|advised about|regarding|on",
        "consider|considering|recommend|recommended|discussed", "to rule out", "needed for",
        "potential|possibility of|for", "scheduled|candidate|referral|referred|planned|plan|plans for",
        "will|to order|obtain|schedule|undergo|need", "ordered", "follow up with",
    ),
    "historical": (
        "history of|significant|remarkable|notable", "history", "hx of?", "h / o", "past medical|surgical history",
        "pmh|psh", "medical|surgical history", "status post", "s / p",
        "previous|previously|prior|former|remote|childhood", "years ago", "in the past", "as a child", "post - op",
        "significant for a? history of",
    ),
    "allergy": (
        "allergic", "allergic to", "allergy|allergies|intolerance|sensitivity to|of", "allergies include|are",
        "intolerant of|to", "adverse|allergic reaction|reactions to?",
    ),
}

BACKWARD: dict[str, tuple[str, ...]] = {
    "negated": (
        "is|are|was|were absent|negative|resolved|denied|unremarkable", "has|have resolved", "resolved|denied|absent",
        "ruled out",
        "not present|seen|noted|appreciated|identified|detected|observed|reported|found|given|needed|done",
        "is|was|are|were not", ": no|none|denies|denied|negative|absent .|,|;|\n", "free", "unlikely",
        "discontinued|held|stopped", "( - )", "negative", "was|were|been discontinued|stopped|held",
    ),
    "hypothetical": ("if needed|necessary|indicated", "as needed", "prn", "precautions", "prophylaxis"),
    "historical": ("years|year|decades|months ago", "in the past", "as a child", "many years ago", "previously"),
    "allergy": ("allergy|allergies", "causes|caused|gives|gave"),
}

# Sections that tell of others or of the past, from their header to the next header or empty line.
SECTIONS: dict[str, tuple[str, ...]] = {
    "family": ("family history :", "family medical history :", "fh|fhx :"),
    "historical": ("past medical|surgical|psychiatric|family history :", "pmh|psh :", "past history :"),
    "allergy": ("allergies :", "drug allergies :", "allergy :"),
}

# Phrases that look like one of the above and are none (pseudo-negations in NegEx).
PSEUDO = (
    "no increase|change|improvement|interval", "not only", "not just", "no further? suspicious",
    "gram negative|- negative",
    "without difficulty|complication|complications|incident|problems|issue|issues|any? difficulty",
    "not certain|sure|clear", "not drain", "not necessarily", "no matter", "no doubt", "not rule out",
    "not ruled out", "cannot be ruled? excluded?", "day|days|week|weeks|month|months|hour|hours history of",
    "history of present illness", "history of the? present", "year|years history of",
    "- day|week|month|hour|year history of", "presents|presented|presenting with a history of",
    "mother|father|mom|dad|parents|family|wife|husband|daughter|son|sister states|state|reports|report|reported",
    "mother|father|mom|dad|parents|family|wife|husband|daughter|son|sister notes|noted|noticed|feels|says|stated",
    "mother|father|mom|dad|parents|family|wife|husband|daughter|son|sister brought|brings|concerned",
    "per|with|by|from his|her|the? mother|father|mom|parents|wife|husband|daughter|son",
    "history obtained|provided|given", "pain medication|medications|medicine|control|relief|management",
    "pain reliever|relievers|pill|pills|clinic|scale", "fever relief", "without relief|improvement", "turned off",
    "drop off", "day|days off", "off and on", "on and off", "blood pressure check", "as well as", "should be",
    "non - tender", "off - and", "years old", "prior to", "previous visit", "if any",
    "not improve|improved|improving",
)

# A scope ends here, and at the end of a sentence.
TERMINATORS = (
    "but|however|although|though|except|nevertheless|yet|aside|besides|whereas|while|which|because|since",
    "despite|still", "apart from", "other than", "with the exception of", "secondary to", "due to", "as a result of",
    "caused by", "in spite of", "he|she|patient has|had|is|was|reports|complains|presents|states",
    "he|she|patient feels|describes|did|does|notes|continues|takes|took", "he's|she's",
    "reports|reported|complains|complained|complaining|endorses|admits|presents|presented|presenting", "positive for",
    "and has|had|is|was|reports|complains|takes|remains|now", "when|and her|his", "who presents|presented|is|was|has",
    "currently|today|now|presently|recently", "is on|taking", "was found|noted|started|given|placed",
    "continues|remains", "we|i", "started on", "treated|managed with", "but also",
    "does|do have|report|complain|endorse|admit", "then", "did have",
)
# fmt: on
