"""Holds the sample texts of the demo page, from several domains, each with labels that fit it.

Knows nothing of the page.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A text with the labels to look for, one per line as on the page: NAME or NAME=DESCRIPTION."""

    name: str
    text: str
    labels: str


SAMPLES = (
    Sample(
        "News",
        "Angela Merkel met Emmanuel Macron in Strasbourg on Tuesday. Siemens and Airbus said they would build a "
        "factory near Toulouse by March 2026.",
        "person\norganization\nlocation\ndate",
    ),
    Sample(
        "Medicine",
        "The patient was given 400 mg of ibuprofen for her migraine. Two days later she developed a rash on both "
        "arms, and the treatment was changed to paracetamol.",
        "drug\ndisease or symptom=what the patient suffers from\nbody part\ndose=an amount of a drug",
    ),
    Sample(
        "Law",
        "In Smith v. Baker, the Court of Appeal held on 12 May 1998 that Harbour Insurance Ltd. was liable under "
        "section 4 of the Marine Act 1906.",
        "court\nparty=a person or company in a case\ncase\nlaw=a statute or a part of one\ndate",
    ),
    Sample(
        "Cooking",
        "Melt two tablespoons of butter in a cast-iron pan, add the sliced leeks and a pinch of nutmeg, and let them "
        "simmer for twenty minutes before you stir in the cream.",
        "ingredient\namount\ntool\nduration",
    ),
    Sample(
        "Software",
        "Since upgrading to Firefox 128 on Ubuntu, the extension crashes with a TypeError in popup.js when I open "
        "GitHub. Chrome works.",
        "software=a program or its version\noperating system\nfile\nerror\nwebsite",
    ),
    Sample(
        "History",
        "Marie Curie moved from Warsaw to Paris in 1891 and studied at the Sorbonne. In 1903 she shared the Nobel "
        "Prize in Physics with Pierre Curie and Henri Becquerel.",
        "person\ncity\norganization=a university or a company\naward=a prize\ndate",
    ),
    Sample(
        "Shopping",
        "Looking for a used Fender Stratocaster in sunburst, made in Mexico, under 600 dollars, with a hard case.",
        "product\nbrand\ncolour\ncountry\nprice",
    ),
)
