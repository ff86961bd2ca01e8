"""Which attributes tell who somebody is, by the words of their names alone: the second opinion's own rules.

They are kept apart from the engine's tables on purpose (PS3.15 Table E.1-1 says what to do, these say what to doubt):
whatever an error in a table lets through must not pass here for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from pydicom._dicom_dict import DicomDictionary

# What is sought in every value of the result, by what kind of thing it is; "skip" first.
_SOUGHT: Final = (
    ("skip", re.compile(r"Sequence$|UID$|Type$|Code|Scheme|Qualifier|Manufacturer|Time|Instruction|Comment|Priority")),
    ("phone", re.compile(r"Telephone|PhoneNumber")),
    ("day", re.compile(r"Birth.*Date|Death.*Date")),
    ("name", re.compile(r"(Patient|Person|Physician|Operator|Observer|Performer|Reviewer|Interpreter|Creator).*Name")),
    ("name", re.compile(r"^(RequestingPhysician|PhysiciansOfRecord|NameOfPhysicians|OperatorsName|Responsible)")),
    (
        "number",
        re.compile(
            r"^(Other)?(Patient|Medical|Accession|Admission|ServiceEpisode|Insurance|Visit).*(ID|Number|Locator)"
        ),
    ),
    ("number", re.compile(r"Patient.*ID|(Placer|Filler)OrderNumber|SubjectID$|^StudyID$|SpecimenAccession")),
    ("phrase", re.compile(r"Patient.*Address$|Person.*Address$|Physician.*Address|Telecom|EmailAddress")),
    ("place", re.compile(r"^InstitutionName|^InstitutionalDepartmentName|^InstitutionAddress")),
    ("device", re.compile(r"^DeviceSerialNumber|^StationName")),
)
_KEPT_BY: Final = {"place": "retain-institution-identity", "device": "retain-device-identity"}

# What must not be found unchanged where it stood, with the options of PS3.15 E.3 under which it may.
_CONTENT: Final = frozenset({"clean-descriptors", "clean-structured-content", "clean-graphics"})
_DOUBTED: Final[tuple[tuple[frozenset[str], str], ...]] = (
    (
        frozenset({"retain-patient-characteristics"}),
        r"^Patient(Sex|Age|Size|Weight|Species)|Smoking|Pregnan|Ethnic|SpecialNeeds|PreMedication",
    ),
    (frozenset({"retain-patient-characteristics", "clean-descriptors"}), r"^PatientState|Allerg|Alerts"),
    (
        frozenset({"retain-device-identity"}),
        r"Serial|Station(Name|AE)|(Plate|Generator|Cassette|Gantry|Detector|Device|XRaySource)ID$|DeviceIdentifier|"
        r"TreatmentMachineName|DeviceLabel|(^|Setup|Spreading)DeviceDescription|Camera(Owner)|Lens(Make|Model|Specification)|XRayDetectorLabel|"
        r"DeviceAlternate|ModifyingSystem|StepLocation|(Receiving|Requesting)AE|AETitle|StudyLocation",
    ),
    (frozenset({"retain-institution-identity"}), r"^Institution"),
    (frozenset({"retain-full-dates", "retain-modified-dates"}), r"TimezoneOffset"),
    (
        _CONTENT,
        r"Comments$|^Comments|History|^Reason(For(The|Study|Visit|Super))|Requested(Contrast)|^ContrastBolusAgent$|"
        r"^(Study|Series|Acquisition|AcquisitionProtocol|PerformedProcedureStep|ScheduledProcedureStep|Derivation|"
        r"RequestedProcedure|AdmittingDiagnoses|Discharge\w*|Interpretation\w*|Contribution|Specimen\w*|RT\w+|"
        r"StructureSet|Visit|Fraction\w*|DoseReference|Prescription|Treatment|ROI\w*|Beam|Pyramid|Requested\w+|"
        r"ClinicalTrial\w+|Modified\w+|ServiceEpisode|Channel\w+|Waveform\w+|FilterLookup\w+|Container|Bolus|"
        r"Compensator|SetupTechnique|ConceptualVolume\w*|PriorTreatmentDose|ReasonForOmission|Interlock\w*|Equipment\w+|"
        r"RadiationGenerationMode|Entity|PatientTreatment\w+|PatientSetupPhoto|AnnotationGroup|Decomposition|Multienergy\w+|"
        r"Respiratory\w+|AcquisitionDeviceProcessing|AcquisitionContext|DeviceSetting|Confidentiality\w+|"
        r"TreatmentTolerance\w+|PositionAcquisition\w+)Description$|^ProtocolName$|TreatmentSites?$|PositionAcquisitionTemplateName|Arbitrary|"
        r"^Selector(AE|AS|OB|LO|LT|UN|SH|ST|UT|UR)Value|^(Entity|Pyramid|Channel|MultiplexGroup|AnnotationGroup)\w*Label$|"
        r"AcquisitionFieldOfViewLabel|^EntityName|^Radiation\w+Label$|^RT\w+Label$|TreatmentPositionGroupLabel|"
        r"DisplacementReferenceLabel|(RTPlan|ROI|StructureSet)Name$|"
        r"(Fixation|Shielding|Long)DeviceDescription|^Occupation$|^RequestingService$|"
        r"(InterpretationText|Impressions|Narrative|Keywords|TextString|UnformattedText|TextValue|Topic\w+|LabelText)$|"
        r"(Treatment|Prescription|Fractionation)\w*Notes$|^(StructureSet|RTPlan|RTPrescription|UserContent\w*|ROI\w+)Label$",
    ),
    (
        frozenset(),
        r"PersonName|^Patient\w*(Name|ID|IDs|Address|Insurance\w*|Residence|Preference|Arrangements)$|^OtherPatient|"
        r"MedicalRecord|Military|BranchOfService|Insurance|CountryOfResid|RegionOfResid|Religious|"
        r"Telephone|PhoneNumber|Telecom|PersonAddress|PhysicianAddress|Accession|Issuer|"
        r"^(Study|Admission|ServiceEpisode|Visit|Results|Interpretation|ScheduledProcedureStep|PerformedProcedureStep|"
        r"RequestedProcedure)ID$|(Placer|Filler)OrderNumber|CurrentPatientLocation|(Performed|Enterer)Location|"
        r"ClinicalTrial\w*(ID|Name|Number)$|MakerNote|^GPS|NetworkID|DistributionAddress|AddressTrial|DestinationAE|SourceOfPrevious|(Container|Specimen|Slide|Flow|Source)Identifier|ContainerComponentID|"
        r"FrameOriginTimestamp|CertificateOfSigner|CertifiedTimestamp$|^MAC$|NonconformingData|InstanceOrigin|"
        r"ScheduledPatientInstitution|ProcedureLocation|AccessoryHolderSlot|AccessoryDeviceSlot|SourceManufacturer|"
        r"Organization$|Originator$|Author$|Barcode(Value)$",
    ),
)
_COMPILED: Final = tuple((options, re.compile(pattern)) for options, pattern in _DOUBTED)


def keyword(tag: int) -> str:
    """The keyword of PS3.6; empty where the dictionary has none."""
    entry = DicomDictionary.get(tag)
    return entry[4] if entry else ""


@lru_cache(maxsize=65536)
def _kind(tag: int) -> str:
    name = keyword(tag)
    return next((kind for kind, pattern in _SOUGHT if name and pattern.search(name)), "skip")


def kind(tag: int, vr: str, options: Collection[str]) -> str:
    """What sort of identifier stands there: name, day, number, phone, phrase, place, device; or `skip`."""
    found = "name" if vr == "PN" else _kind(tag)
    return "skip" if _KEPT_BY.get(found) in options else found


@lru_cache(maxsize=65536)
def doubted(tag: int, vr: str, options: frozenset[str]) -> bool:
    """Whether the same value in the same attribute of the result would tell something that it must not."""
    if vr == "PN":
        return True
    name = keyword(tag)
    return any(not may & options and pattern.search(name) for may, pattern in _COMPILED)
