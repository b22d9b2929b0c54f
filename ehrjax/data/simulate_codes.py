"""Code tables of the simulator: values of SNOMED CT, LOINC, RxNorm and CVX as Synthea's files use them.

Code numbers and short names, without commas, as in Synthea's CSV files; frequencies are set in `simulate_records`.
"""

from typing import NamedTuple


def _parse(text: str) -> dict[str, str]:
    """`CODE name; CODE name; ...` to a dict in order."""
    items = (item.strip() for item in text.split(";"))
    return {code: name for code, _, name in (item.partition(" ") for item in items if item)}


class Lab(NamedTuple):
    """An observation: its LOINC name, unit and category, and mean and standard deviation in a healthy adult."""

    name: str
    unit: str
    category: str
    mean: float
    deviation: float


def _parse_labs(category: str, text: str) -> dict[str, Lab]:
    """Lines of `CODE | name | unit | mean | deviation`."""
    rows = (line.split("|") for line in text.strip().splitlines())
    return {
        code.strip(): Lab(name.strip(), unit.strip(), category, float(mean), float(deviation))
        for code, name, unit, mean, deviation in rows
    }


# Conditions that record the state itself.
DISEASE_CODES = {"obesity": "162864005", "hypertension": "59621000", "kidney": "433144002", "heart": "88805009",
                 "copd": "185086009"}  # fmt: skip
LEVEL_CODES = {1: "80394007", 2: "714628002", 3: "237602007", 4: "44054006"}  # by glycaemic level; 4 is diabetes
NORMAL_GLUCOSE_PROCEDURE = "268556000"  # a glucose screening, coded where the level is normal again
STATE_CONDITIONS = _parse("""
162864005 Body mass index 30+ - obesity; 59621000 Essential hypertension; 433144002 Chronic kidney disease stage 3;
88805009 Chronic congestive heart failure; 185086009 Chronic obstructive bronchitis; 80394007 Hyperglycemia;
714628002 Prediabetes; 237602007 Metabolic syndrome X; 44054006 Diabetes mellitus type 2
""")
STEROID_MEDICATION = "312617"
STEROID_REASONS = _parse("10509002 Acute bronchitis; 241929008 Acute allergic reaction; 56018004 Wheezing")
SMOKING = ("Never smoker", "Former smoker", "Current every day smoker")
SMOKING_CODE = "72166-2"
CARE_CODES = _parse("""
308283009 Discharge from hospital; 268556000 Urine screening for glucose; 430193006 Medication reconciliation;
395123002 Urine screening test for diabetes; 265764009 Renal dialysis; 722161008 Diabetic retinal eye exam
""")
ENCOUNTERS = {
    "checkup": ("162673000", "General examination of patient"),
    "child": ("410620009", "Well child visit"),
    "follow_up": ("390906007", "Follow-up encounter"),
    "check": ("185349003", "Encounter for check up"),
    "problem": ("185347001", "Encounter for problem"),
    "symptom": ("185345009", "Encounter for symptom"),
    "urgent": ("702927004", "Urgent care clinic"),
    "emergency": ("50849002", "Emergency room admission"),
    "therapy": ("308335008", "Patient encounter procedure"),
    "telemedicine": ("448337001", "Telemedicine consultation with patient"),
    "stay": ("32485007", "Hospital admission"),
    "intensive": ("305351004", "Admission to intensive care unit"),
}

VITALS = _parse_labs(
    "vital-signs",
    """
8480-6 | Systolic Blood Pressure | mm[Hg] | 118 | 9
8462-4 | Diastolic Blood Pressure | mm[Hg] | 76 | 7
8867-4 | Heart rate | /min | 76 | 9
9279-1 | Respiratory rate | /min | 14.5 | 1.6
29463-7 | Body Weight | kg | 74 | 10
8302-2 | Body Height | cm | 168 | 9
39156-5 | Body Mass Index | kg/m2 | 25 | 2.4
72514-3 | Pain severity - 0-10 verbal numeric rating | {score} | 2.2 | 1.5
""",
)
GLUCOSE_LABS = _parse_labs(
    "laboratory",
    """
4548-4 | Hemoglobin A1c/Hemoglobin.total in Blood | % | 5.2 | 0.22
2345-7 | Glucose [Mass/volume] in Serum or Plasma | mg/dL | 88 | 7
""",
)
METABOLIC_LABS = _parse_labs(
    "laboratory",
    """
2160-0 | Creatinine [Mass/volume] in Serum or Plasma | mg/dL | 0.9 | 0.15
33914-3 | Glomerular filtration rate predicted | mL/min | 96 | 11
3094-0 | Urea nitrogen [Mass/volume] in Serum or Plasma | mg/dL | 13.5 | 3
2951-2 | Sodium [Moles/volume] in Serum or Plasma | mmol/L | 140 | 2
2823-3 | Potassium [Moles/volume] in Serum or Plasma | mmol/L | 4.4 | 0.4
2075-0 | Chloride [Moles/volume] in Serum or Plasma | mmol/L | 105 | 2.5
2028-9 | Carbon dioxide total [Moles/volume] in Serum or Plasma | mmol/L | 24.7 | 2
17861-6 | Calcium [Mass/volume] in Serum or Plasma | mg/dL | 9.4 | 0.4
""",
)
LIPID_LABS = _parse_labs(
    "laboratory",
    """
2093-3 | Cholesterol [Mass/volume] in Serum or Plasma | mg/dL | 182 | 22
2571-8 | Triglycerides | mg/dL | 128 | 24
18262-6 | Low Density Lipoprotein Cholesterol | mg/dL | 102 | 19
2085-9 | Cholesterol in HDL [Mass/volume] in Serum or Plasma | mg/dL | 57 | 9
""",
)
BLOOD_COUNT_LABS = _parse_labs(
    "laboratory",
    """
6690-2 | Leukocytes [#/volume] in Blood by Automated count | 10*3/uL | 6.6 | 1.4
789-8 | Erythrocytes [#/volume] in Blood by Automated count | 10*6/uL | 4.7 | 0.4
718-7 | Hemoglobin [Mass/volume] in Blood | g/dL | 14 | 1.2
4544-3 | Hematocrit [Volume Fraction] of Blood by Automated count | % | 43 | 3.5
787-2 | MCV [Entitic volume] by Automated count | fL | 88 | 4
777-3 | Platelets [#/volume] in Blood by Automated count | 10*3/uL | 262 | 50
""",
)
SURVEYS = _parse_labs(
    "survey",
    """
55758-7 | Patient Health Questionnaire 2 item (PHQ-2) total score | {score} | 1.2 | 0.9
70274-6 | Generalized anxiety disorder 7 item (GAD-7) total score | {score} | 4.2 | 2.5
75626-2 | Total score [AUDIT-C] | {score} | 1.9 | 1
82667-7 | Total score [DAST-10] | {score} | 1 | 0.7
""",
)
OTHER_LABS = _parse_labs(
    "laboratory",
    """
2276-4 | Ferritin [Mass/volume] in Serum or Plasma | ug/L | 160 | 50
6301-6 | INR in Platelet poor plasma by Coagulation assay | {INR} | 1.1 | 0.15
5902-2 | Prothrombin time (PT) | s | 11.2 | 0.9
19123-9 | Magnesium [Mass/volume] in Serum or Plasma | mg/dL | 2 | 0.2
48065-7 | Fibrin D-dimer FEU [Mass/volume] in Platelet poor plasma | ug/mL | 0.4 | 0.15
33959-8 | Procalcitonin [Mass/volume] in Serum or Plasma | ng/mL | 0.12 | 0.04
10834-0 | Globulin [Mass/volume] in Serum by calculation | g/L | 26 | 3
2157-6 | Creatine kinase [Enzymatic activity/volume] in Serum or Plasma | U/L | 95 | 30
1988-5 | C reactive protein [Mass/volume] in Serum or Plasma | mg/L | 6 | 2.5
14804-9 | Lactate dehydrogenase in Serum or Plasma | U/L | 190 | 30
2498-4 | Iron [Mass/volume] in Serum or Plasma | ug/dL | 95 | 20
2500-7 | Iron binding capacity [Mass/volume] in Serum or Plasma | ug/dL | 310 | 35
2502-3 | Iron saturation [Mass Fraction] in Serum or Plasma | % | 32 | 7
33762-6 | NT-proBNP | pg/mL | 120 | 50
89579-7 | Troponin I.cardiac by High sensitivity method | pg/mL | 5 | 2
2777-1 | Phosphate [Mass/volume] in Serum or Plasma | mg/dL | 3.4 | 0.5
3016-3 | Thyrotropin [Units/volume] in Serum or Plasma | m[IU]/L | 2.3 | 0.9
3173-2 | aPTT in Blood by Coagulation assay | s | 31 | 3
2708-6 | Oxygen saturation in Arterial blood | % | 96.5 | 1.2
19926-5 | FEV1/FVC | % | 78 | 5
14959-1 | Microalbumin Creatinine Ratio | mg/g | 14 | 6
5811-5 | Specific gravity of Urine by Test strip | {nominal} | 1 | 0.01
5803-2 | pH of Urine by Test strip | pH | 6 | 0.4
5804-0 | Protein [Mass/volume] in Urine by Test strip | mg/dL | 12 | 5
2885-2 | Protein [Mass/volume] in Serum or Plasma | g/dL | 7 | 0.4
1751-7 | Albumin [Mass/volume] in Serum or Plasma | g/dL | 4.4 | 0.3
1920-8 | Aspartate aminotransferase in Serum or Plasma | U/L | 24 | 6
1742-6 | Alanine aminotransferase in Serum or Plasma | U/L | 26 | 7
1975-2 | Bilirubin.total [Mass/volume] in Serum or Plasma | mg/dL | 0.7 | 0.2
6768-6 | Alkaline phosphatase in Serum or Plasma | U/L | 76 | 15
""",
)

ACUTE_ADULT = _parse("""
444814009 Viral sinusitis; 195662009 Acute viral pharyngitis; 10509002 Acute bronchitis;
43878008 Streptococcal sore throat; 65363002 Otitis media; 75498004 Acute bacterial sinusitis; 36971009 Sinusitis;
312608009 Laceration - injury; 125605004 Fracture of bone; 44465007 Sprain of ankle; 384709000 Sprain;
840544004 Suspected COVID-19; 840539006 COVID-19; 386661006 Fever; 307426000 Acute infective cystitis; 49727002 Cough;
36955009 Loss of taste; 284551006 Laceration of foot; 62106007 Concussion with no loss of consciousness;
110030002 Concussion injury of brain; 39848009 Whiplash injury to neck; 84229001 Fatigue; 90460009 Injury of neck;
284549007 Laceration of hand; 48333001 Burn injury; 58150001 Fracture of clavicle;
263102004 Fracture subluxation of wrist; 283371005 Laceration of forearm; 65966004 Fracture of forearm;
56018004 Wheezing; 267036007 Dyspnea; 248595008 Sputum finding; 33737001 Fracture of rib; 370247008 Facial laceration;
16114001 Fracture of ankle; 70704007 Sprain of wrist; 283385000 Laceration of thigh; 403190006 Epidermal burn of skin;
38822007 Cystitis; 25064002 Headache; 267102003 Sore throat symptom; 403191005 Partial thickness burn;
125601008 Injury of knee; 57676002 Joint pain; 68962001 Muscle pain;
232353008 Perennial allergic rhinitis with seasonal variation; 241929008 Acute allergic reaction;
307731004 Injury of tendon of the rotator cuff of shoulder; 301011002 Escherichia coli urinary tract infection;
367498001 Seasonal allergic rhinitis; 43724002 Chill; 271825005 Respiratory distress; 40275004 Contact dermatitis;
267060006 Diarrhea symptom; 422587007 Nausea; 249497008 Vomiting symptom;
274531002 Abnormal imaging of heart and coronary circulation
""")

ACUTE_CHILD = _parse("""
444814009 Viral sinusitis; 195662009 Acute viral pharyngitis; 10509002 Acute bronchitis;
43878008 Streptococcal sore throat; 65363002 Otitis media; 75498004 Acute bacterial sinusitis; 386661006 Fever;
44465007 Sprain of ankle; 283371005 Laceration of forearm; 58150001 Fracture of clavicle; 16114001 Fracture of ankle;
62106007 Concussion with no loss of consciousness; 367498001 Seasonal allergic rhinitis;
446096008 Perennial allergic rhinitis; 267102003 Sore throat symptom; 312608009 Laceration - injury;
403190006 Epidermal burn of skin; 38822007 Cystitis; 25064002 Headache; 56018004 Wheezing; 249497008 Vomiting symptom;
125605004 Fracture of bone; 70704007 Sprain of wrist; 192127007 Child attention deficit disorder
""")

FINDINGS = _parse("""
73595000 Stress; 160903007 Full-time employment; 160904001 Part-time employment; 422650009 Social isolation;
423315002 Limited social contact; 741062008 Not in labor force; 706893006 Victim of intimate partner abuse;
224299000 Received higher education; 424393004 Reports of violence in the environment; 73438004 Unemployed;
160968000 Risk activity involvement; 266948004 Has a criminal record; 473461003 Educated to high school level;
10939881000119105 Unhealthy alcohol drinking behavior; 105531004 Housing unsatisfactory;
224295006 Only received primary school education; 713458007 Lack of access to transportation;
266934004 Transport problem; 224355006 Served in armed forces;
5251000175109 Received certificate of high school equivalency; 446654005 Refugee; 361055000 Misuses drugs;
1187604002 Serving in military service; 314529007 Medication review due; 32911000 Homeless; 66383009 Gingivitis;
18718003 Gingival disease; 278598003 Leaking dental filling; 278558000 Dental filling lost;
278588009 Fractured dental filling; 278602001 Loose dental filling; 109570002 Primary dental caries;
37320007 Loss of teeth; 196416002 Impacted molars; 427898007 Infection of tooth; 183996000 Sterilization requested;
161744009 Past pregnancy history of miscarriage; 428251008 History of appendectomy;
399211009 History of myocardial infarction; 429007001 History of cardiac arrest; 82423001 Chronic pain;
1121000119107 Chronic neck pain
""")

CHRONIC = _parse("""
55822004 Hyperlipidemia; 53741008 Coronary Heart Disease; 49436004 Atrial Fibrillation; 271737000 Anemia;
64859006 Osteoporosis; 239873007 Osteoarthritis of knee; 239872002 Osteoarthritis of hip;
278860009 Chronic low back pain; 40055000 Chronic sinusitis; 370143000 Major depression disorder;
78275009 Obstructive sleep apnea syndrome; 39898005 Sleep disorder; 26929004 Alzheimer's disease; 84757009 Epilepsy;
203082005 Fibromyalgia; 124171000119105 Chronic intractable migraine without aura; 68496003 Polyp of colon;
90560007 Gout; 195967001 Asthma; 414545008 Ischemic heart disease; 197927001 Recurrent urinary tract infection;
83664006 Idiopathic atrophic hypothyroidism; 80583007 Severe anxiety (panic)
""")

STAY_REASONS = _parse("""
91302008 Sepsis; 233604007 Pneumonia; 22298006 Myocardial Infarction;
401303003 Acute ST segment elevation myocardial infarction;
401314000 Acute non-ST segment elevation myocardial infarction; 230690007 Stroke; 359817006 Closed fracture of hip;
74400008 Appendicitis; 132281000119108 Acute deep venous thrombosis; 706870000 Acute pulmonary embolism;
65710008 Acute respiratory failure; 45816000 Pyelonephritis; 389087006 Hypoxemia; 47693006 Rupture of appendix;
410429000 Cardiac Arrest; 443165006 Osteoporotic fracture of bone; 87628006 Bacterial infectious disease;
76571007 Septic shock
""")

DIABETES_COMPLICATIONS = _parse("""
127013003 Disorder of kidney due to diabetes mellitus; 90781000119102 Microalbuminuria due to type 2 diabetes mellitus;
157141000119108 Proteinuria due to type 2 diabetes mellitus;
368581000119106 Neuropathy due to type 2 diabetes mellitus;
1551000119108 Nonproliferative diabetic retinopathy due to type 2 diabetes mellitus;
422034002 Retinopathy due to type 2 diabetes mellitus;
97331000119101 Macular edema and retinopathy due to type 2 diabetes mellitus
""")

PROCEDURES = _parse("""
171207006 Depression screening; 710824005 Assessment of health and social care needs;
430193006 Medication reconciliation; 428211000124100 Assessment of substance use; 710841007 Assessment of anxiety;
103697008 Patient referral for dental care; 34043003 Dental consultation and report; 243085009 Oral health education;
274788003 Examination of gingivae; 1260010008 Removal of subgingival plaque and calculus; 225362009 Dental care;
1260009003 Removal of supragingival plaque and calculus; 410401003 Nursing care/supplementary surveillance;
866148006 Screening for domestic abuse; 763302001 Assessment using AUDIT-C; 713106006 Screening for drug abuse;
762993000 Assessment using Morse Fall Scale; 241046008 Dental plain X-ray bitewing; 68071007 Dental fluoride treatment;
454711000124102 Depression screening using PHQ-2 score; 180256009 Subcutaneous immunotherapy;
76601001 Intramuscular injection; 715252007 Depression screening using PHQ-9 score; 398171003 Hearing examination;
428191000124101 Documentation of current medications; 5880005 Physical examination procedure;
81733005 Dental surgical procedure; 456191000124101 Postoperative care for dental procedure;
3802001 Dental application of desensitizing medicament; 104091002 Hemogram automated;
55468007 Ocular slit lamp examination; 16830007 Visual acuity testing; 314971001 Camera fundoscopy;
252832004 Intraocular pressure test; 389153003 Indirect gonioscopy; 868187001 Assessment using CRAFFT screening test;
64544008 Gingivectomy or gingivoplasty per tooth; 371908008 Oxygen administration by mask; 73761001 Colonoscopy;
431182000 Placing subject in prone position; 386516004 Anticipatory guidance; 127783003 Spirometry;
90226004 Cytopathology procedure preparation of smear genital source;
1256042007 Restoration of tooth with dental filling; 399208008 Plain X-ray of chest; 44608003 Blood group typing;
1259293006 Application of composite dental filling; 269828009 Syphilis infectious titer test;
165829005 Gonorrhea infection titer test; 47758006 Hepatitis B surface antigen measurement; 117010004 Urine culture;
310861008 Chlamydia antigen test; 28163009 Skin test for tuberculosis Tine test;
104375008 Hepatitis C antibody confirmatory test; 31676001 Human immunodeficiency virus antigen test;
104326007 Measurement of Varicella-zoster virus antibody; 29303009 Electrocardiographic procedure;
399014008 Administration of DTaP vaccine product; 23426006 Measurement of respiratory function;
117015009 Throat culture; 103750000 Sleep apnea assessment; 118001005 Streptococcus pneumoniae group B antigen assay;
700070005 Optical coherence tomography of retina; 370789001 Development of individualized plan of care;
315639002 Initial patient assessment; 25656009 Physical examination complete;
67879005 History and physical examination limited; 40701008 Echocardiography; 314098000 Rubella screening test;
60218003 Urinalysis protein qualitative; 288086009 Suture open wound;
16335031000119103 High resolution computed tomography of chest; 180325003 Electrical cardioversion;
51116004 Passive immunization; 65200003 Insertion of intrauterine contraceptive device;
370995009 Health risks education; 84100007 History taking; 441550005 Urinalysis with reflex to microscopy and culture;
63332003 History AND physical examination; 65546002 Extraction of wisdom tooth;
169553002 Insertion of subcutaneous contraceptive; 269911007 Sputum examination; 274474001 Bone immobilization;
33195004 External beam radiation therapy procedure; 173291009 Simple extraction of tooth;
71493000 Transfusion of packed red blood cells; 223470000 Discussion about signs and symptoms;
281789004 Antibiotic therapy; 57617002 Urine specimen collection; 1269321004 Fitting of denture;
234745004 Take oral or dental impression; 162676008 Brief general examination; 71651007 Mammography;
14768001 Peripheral blood smear interpretation; 311791003 Information gathering; 415300000 Review of systems;
315124004 Human immunodeficiency virus viral load; 301807007 Removal of subcutaneous contraceptive;
133899007 Postoperative care; 312681000 Bone density scan; 185087000 Notifications; 310417005 Certification procedure;
313660005 Absolute CD4 count procedure; 386053000 Evaluation procedure; 167271000 Urine protein test;
169690007 Rubella screening; 9564003 Complete blood count with white cell differential automated
""")

THERAPIES = _parse("""
229064008 Movement therapy; 52052004 Rehabilitation therapy; 91251008 Physical therapy procedure;
84478008 Occupational therapy; 228557008 Cognitive and behavioral therapy;
409023009 Professional / ancillary services care; 15081005 Pulmonary rehabilitation;
311555007 Speech and language therapy regime; 180256009 Subcutaneous immunotherapy;
410401003 Nursing care/supplementary surveillance
""")

STAY_PROCEDURES = _parse("""
371908008 Oxygen administration by mask; 71493000 Transfusion of packed red blood cells;
433236007 Transthoracic echocardiography; 29303009 Electrocardiographic procedure; 399208008 Plain X-ray of chest;
52765003 Intubation; 392247006 Insertion of catheter into artery; 281789004 Antibiotic therapy;
430701006 Resuscitation using intravenous fluid; 386053000 Evaluation procedure;
418891003 Computed tomography of chest and abdomen; 65677008 Pulmonary catheterization with Swan-Ganz catheter;
243150007 Assist control ventilation; 225338004 Risk assessment;
710839006 Assessment of cardiac status using monitoring device
""")

ACUTE_MEDICATIONS = _parse("""
313782 Acetaminophen 325 MG Oral Tablet; 562251 Amoxicillin 250 MG / Clavulanate 125 MG Oral Tablet;
308192 Amoxicillin 500 MG Oral Tablet; 834060 Penicillin V Potassium 250 MG; 206905 Ibuprofen 400 MG Oral Tablet [Ibu];
198440 Acetaminophen 500 MG Oral Tablet; 310965 Ibuprofen 200 MG Oral Tablet;
849574 Naproxen sodium 220 MG Oral Tablet; 835603 tramadol hydrochloride 50 MG Oral Tablet;
856987 Acetaminophen 300 MG / Hydrocodone Bitartrate 5 MG Oral Tablet;
1049221 Acetaminophen 325 MG / Oxycodone Hydrochloride 5 MG Oral Tablet; 141962 Azithromycin 250 MG Oral Capsule;
197454 cephalexin 500 MG Oral Tablet; 198335 sulfamethoxazole 800 MG / trimethoprim 160 MG Oral Tablet;
309097 Cefuroxime 250 MG Oral Tablet; 1648755 nitrofurantoin 100 MG Oral Capsule;
309309 ciprofloxacin 500 MG Oral Tablet; 1043400 Acetaminophen / Dextromethorphan / doxylamine Oral Solution;
665078 Loratadine 5 MG Chewable Tablet; 997488 Fexofenadine hydrochloride 30 MG Oral Tablet;
1014676 cetirizine hydrochloride 5 MG Oral Tablet; 2123111 albuterol 0.09 MG/ACTUAT Metered Dose Inhaler;
106258 Hydrocortisone 10 MG/ML Topical Cream; 1049630 diphenhydrAMINE Hydrochloride 25 MG Oral Tablet;
1094107 Phenazopyridine hydrochloride 100 MG Oral Tablet; 477045 Chlorpheniramine Maleate 2 MG/ML Oral Solution;
993770 Acetaminophen 300 MG / Codeine Phosphate 15 MG Oral Tablet; 311372 Loratadine 10 MG Oral Tablet;
198405 Ibuprofen 100 MG Oral Tablet; 313820 Acetaminophen 160 MG Chewable Tablet;
834102 Penicillin V Potassium 500 MG Oral Tablet; 308182 Amoxicillin 250 MG Oral Capsule;
1020137 Dextromethorphan Hydrobromide 1 MG/ML; 284215 Clindamycin 300mg; 198014 Naproxen 500 MG Oral Tablet
""")

STAY_MEDICATIONS = _parse("""
854235 0.4 ML Enoxaparin sodium 100 MG/ML Prefilled Syringe; 1659263 1 ML heparin sodium porcine 5000 UNT/ML Injection;
1807513 vancomycin 1000 MG Injection; 1659149 piperacillin 4000 MG / tazobactam 500 MG Injection;
1740467 2 ML Ondansetron 2 MG/ML Injection; 1735006 10 ML Fentanyl 0.05 MG/ML Injection;
1728805 2 ML morphine sulfate 1 MG/ML Injection; 1719286 10 ML Furosemide 10 MG/ML Injection;
311700 Midazolam 1 MG/ML Injectable Solution; 1808217 100 ML Propofol 10 MG/ML Injection;
1234995 Rocuronium bromide 10 MG/ML Injectable Solution; 1665060 cefazolin 2000 MG Injection;
834357 3 ML Amiodarone hydrocholoride 50 MG/ML Prefilled Syringe; 1660014 1 ML Epinephrine 1 MG/ML Injection;
242969 4 ML norepinephrine 1 MG/ML Injection; 1190795 Atropine Sulfate 1 MG/ML Injectable Solution;
1659131 piperacillin 2000 MG / tazobactam 250 MG Injection; 1804799 Alteplase 100 MG Injection
""")

CHRONIC_MEDICATIONS = _parse("""
314076 lisinopril 10 MG Oral Tablet; 308136 amLODIPine 2.5 MG Oral Tablet;
310798 Hydrochlorothiazide 25 MG Oral Tablet; 979485 losartan potassium 25 MG Oral Tablet;
197361 Amlodipine 5 MG Oral Tablet; 866412 24 HR metoprolol succinate 100 MG Extended Release Oral Tablet;
200033 carvedilol 25 MG Oral Tablet; 313988 Furosemide 40 MG Oral Tablet; 979492 losartan potassium 50 MG Oral Tablet;
1656356 sacubitril 97 MG / valsartan 103 MG Oral Tablet [Entresto]; 314077 lisinopril 20 MG Oral Tablet;
197604 Digoxin 0.125 MG Oral Tablet; 245314 albuterol 5 MG/ML Inhalation Solution;
896209 60 ACTUAT Fluticasone propionate 0.25 MG/ACTUAT / salmeterol 0.05 MG/ACTUAT Dry Powder Inhaler;
859088 NDA020983 200 ACTUAT albuterol 0.09 MG/ACTUAT Metered Dose Inhaler [Ventolin];
860975 24 HR Metformin hydrochloride 500 MG Extended Release Oral Tablet;
106892 insulin isophane human 70 UNT/ML / insulin regular human 30 UNT/ML Injectable Suspension [Humulin];
865098 Insulin Lispro 100 UNT/ML Injectable Solution [Humalog]; 897122 3 ML liraglutide 6 MG/ML Pen Injector;
314231 Simvastatin 10 MG Oral Tablet; 617310 atorvastatin 20 MG Oral Tablet; 312961 Simvastatin 20 MG Oral Tablet;
309362 Clopidogrel 75 MG Oral Tablet; 855332 Warfarin Sodium 5 MG Oral Tablet;
310325 ferrous sulfate 325 MG Oral Tablet; 904419 Alendronic acid 10 MG Oral Tablet;
849574 Naproxen sodium 220 MG Oral Tablet; 312938 Sertraline 100 MG Oral Tablet; 310385 FLUoxetine 20 MG Oral Capsule;
243670 aspirin 81 MG Oral Tablet; 966222 Levothyroxine Sodium 0.075 MG Oral Tablet;
197319 Allopurinol 100 MG Oral Tablet; 997221 Donepezil hydrochloride 10 MG [Aricept];
745752 NDA021457 200 ACTUAT albuterol 0.09 MG/ACTUAT Metered Dose Inhaler [ProAir]; 312617 predniSONE 5 MG Oral Tablet
""")

IMMUNIZATIONS = _parse("""
140 Influenza seasonal injectable preservative free; 113 Td (adult) preservative free; 20 DTaP;
133 Pneumococcal conjugate PCV 13; 10 IPV; 49 Hib (PRP-OMP); 08 Hep B adolescent or pediatric; 114 meningococcal MCV4P;
62 HPV quadrivalent; 21 varicella; 03 MMR; 83 Hep A ped/adol 2 dose; 119 rotavirus monovalent; 121 zoster;
52 Hep A adult; 208 COVID-19 mRNA vaccine 30 mcg/0.3 mL; 43 Hep B adult; 207 COVID-19 mRNA vaccine 100 mcg/0.5 mL;
115 Tdap; 33 pneumococcal polysaccharide vaccine 23 valent; 212 COVID-19 vaccine vector rS-Ad26 0.5 mL;
187 zoster vaccine recombinant
""")

ALLERGENS = _parse("""
609328004 Allergic disposition; 264287008 Animal dander; 84489001 Mold; 782576004 Tree pollen;
260147004 House dust mite; 256277009 Grass pollen; 419199007 Allergy to substance; 442571000124108 Tree nut;
735029006 Shellfish; 762952008 Peanut; 111088007 Latex; 102263004 Eggs (edible); 29046 Lisinopril; 1191 Aspirin;
288328004 Bee venom; 412071004 Wheat; 7984 Penicillin V; 735971005 Fish; 3718001 Cow's milk; 256355007 Glycine max;
232347008 Dander (animal) allergy; 10831 Sulfamethoxazole / Trimethoprim; 419474003 Allergy to mould;
91935009 Allergy to peanuts
""")

CAREPLANS = _parse("""
736376001 Infectious disease care plan; 734163000 Care plan; 225358003 Wound care; 385691007 Fracture care;
384758001 Self-care interventions; 773513001 Physiotherapy care plan; 408869004 Musculoskeletal care;
371605008 Deep breathing and coughing exercises; 183051005 Recommendation to rest; 226060000 Stress management;
326051000000105 Self care; 58332002 Allergy education; 170836005 Allergic disorder monitoring;
229065009 Exercise therapy; 710081004 Smoking cessation therapy; 439830001 Behavior to prevent infection;
385949008 Dressing change management; 408580007 Physical activity target light exercise;
737471002 Minor surgery care management; 229070002 Stretching exercises;
229586001 Rest ice compression and elevation treatment programme; 711282006 Skin condition care;
408957008 Chronic pain control management; 718347000 Mental health care plan; 160670007 Diabetic diet;
226234005 Healthy diet; 736372004 Discharge care plan; 736353004 Inpatient care plan;
735985000 Diabetes self management plan; 443402002 Lifestyle education regarding hypertension;
718361005 Weight management program; 736285004 Hyperlipidemia clinical management plan; 736690008 Dialysis care plan;
735984001 Heart failure self management plan; 412776001 Chronic obstructive pulmonary disease clinical management plan;
53950000 Respiratory therapy
""")

DEVICES = _parse("""
72506001 Implantable defibrillator device; 337414009 Blood glucose meter; 706180003 Respiratory humidifier;
702172008 Home continuous positive airway pressure unit; 705643001 Coronary artery stent; 170615005 Home nebulizer;
701100002 Polysomnography analyzer; 701077002 Respiratory apnea monitoring system; 228869008 Manual wheelchair;
91537007 Hospital bed device; 706004007 Implantable cardiac pacemaker; 705406009 Walker; 360008003 Commode;
705427004 Power-assisted wheelchair; 705417005 Wheelchair accessory; 706112002 Patient lifting system
""")
