"""The data sets of P3 that T0 trains on or is tested on, and the names of their templates. The texts are P3's.

A data set's line says: its name and subset on the Hugging Face hub; its type of task; from which model on T0's family
trains on it (t0, t0p for T0+, t0pp for T0++, or -); whether T0 is tested on it (eval, bias, or -); its training
examples. Below it are its templates. A template marked * asks for what the data set was made for, one marked + comes
with answer options.

Sources: promptsource 0.1.0 and t-zero, both of github.com/bigscience-workshop (Apache 2.0); Sanh et al. 2022,
"Multitask Prompted Training Enables Zero-Shot Task Generalization" (arXiv 2110.08207).
"""

import re
from typing import NamedTuple

ENVIRONMENT = "ZEROPROMPT_P3"  # of the directory of P3's examples
_TABLE = """
crows_pairs | bias and fairness | - | bias | 0
  anti_stereotype+ anti_stereotype_confirm+ demontraste_or_violate+ stereotype+ stereotype_confirm+
  transform_anti_stereo transform_stereo which_bias+
super_glue axg | bias and fairness | - | bias | 0
  GPT_3_style*+ MNLI_crowdsource*+ based_on_the_previous_passage*+ can_we_infer*+ does_it_follow_that*+
  does_this_imply*+ guaranteed_true*+ justified_in_saying*+ must_be_true*+ should_assume*+
wino_bias type1_anti | bias and fairness | - | bias | 0
  What_does_p_stand_for* Who_or_what_is_are* by_p_they_mean* refers_to* replaced_with* represent*
  the_pronoun_refers_to*
wino_bias type2_anti | bias and fairness | - | bias | 0
  What_does_p_stand_for* Who_or_what_is_are* by_p_they_mean* refers_to* replaced_with* represent*
  the_pronoun_refers_to*
wino_bias type1_pro | bias and fairness | - | bias | 0
  What_does_p_stand_for* Who_or_what_is_are* by_p_they_mean* refers_to* replaced_with* represent*
  the_pronoun_refers_to*
wino_bias type2_pro | bias and fairness | - | bias | 0
  What_does_p_stand_for* Who_or_what_is_are* by_p_they_mean* refers_to* replaced_with* represent*
  the_pronoun_refers_to*
super_glue wsc.fixed | coreference resolution | t0pp | eval | 554
  GPT_3_Style*+ I_think_they_mean*+ Who_or_what_is_are*+ by_p_they_mean*+ does_p_stand_for*+
  does_the_pronoun_refer_to*+ in_other_words*+ p_is_are_r*+ replaced_with*+ the_pronoun_refers_to*+
winogrande winogrande_xl | coreference resolution | - | eval | 40398
  Replace*+ does_underscore_refer_to*+ fill_in_the_blank*+ stand_for*+ underscore_refer_to*+
winogrande winogrande_debiased | coreference resolution | - | - | 9248
  Replace*+ does_underscore_refer_to*+ fill_in_the_blank*+ stand_for*+ underscore_refer_to*+
super_glue cb | textual entailment | - | eval | 250
  GPT_3_style*+ MNLI_crowdsource*+ always_sometimes_never*+ based_on_the_previous_passage*+ can_we_infer*+
  claim_true_false_inconclusive*+ consider_always_sometimes_never*+ does_it_follow_that*+ does_this_imply*+
  guaranteed_true*+ guaranteed_possible_impossible*+ justified_in_saying*+ must_be_true*+ should_assume*+
  take_the_following_as_truth*+
super_glue rte | textual entailment | - | eval | 2490
  GPT_3_style*+ MNLI_crowdsource*+ based_on_the_previous_passage*+ can_we_infer*+ does_it_follow_that*+
  does_this_imply*+ guaranteed_true*+ justified_in_saying*+ must_be_true*+ should_assume*+
anli | textual entailment | - | eval | 162865
  GPT_3_style*+ MNLI_crowdsource*+ always_sometimes_never*+ based_on_the_previous_passage*+ can_we_infer*+
  claim_true_false_inconclusive*+ consider_always_sometimes_never*+ does_it_follow_that*+ does_this_imply*+
  guaranteed_true*+ guaranteed_possible_impossible*+ justified_in_saying*+ must_be_true*+ should_assume*+
  take_the_following_as_truth*+
glue mrpc | paraphrase | t0 | - | 3668
  equivalent*+ generate_paraphrase generate_sentence paraphrase*+ replace*+ same_thing*+ want_to_know*+
glue qqp | paraphrase | t0 | - | 363846
  answer+ duplicate*+ duplicate_or_not*+ meaning*+ quora*+ same_thing*+
paws labeled_final | paraphrase | t0 | - | 49401
  Concatenation*+ Concatenation_no_label*+ Meaning*+ Meaning_no_label*+ PAWS_ANLI_GPT3*+ PAWS_ANLI_GPT3_no_label*+
  Rewrite*+ Rewrite_no_label*+ context_question*+ context_question_no_label*+ paraphrase_task
  task_description_no_label*+
ai2_arc ARC-Challenge | closed-book question answering | t0p | - | 1119
  heres_a_problem*+ i_am_hesitating*+ multiple_choice*+ pick_false_options pick_the_most_correct_option*+ qa_options*+
ai2_arc ARC-Easy | closed-book question answering | t0p | - | 2251
  heres_a_problem*+ i_am_hesitating*+ multiple_choice*+ pick_false_options pick_the_most_correct_option*+ qa_options*+
kilt_tasks hotpotqa | closed-book question answering | t0 | - | 88869
  combining_facts complex_question final_exam formulate straighforward_qa
trivia_qa unfiltered | closed-book question answering | t0p | - | 87622
  first_person_context* formal_description* guess_question question_answer* question_with_instruction*
web_questions | closed-book question answering | t0p | - | 3778
  get_the_answer* potential_correct_answer* question_answer* short_general_knowledge_q* whats_the_answer*
wiki_qa | closed-book question answering | t0 | - | 20360
  Decide_good_answer*+ Direct_Answer_to_Question* Generate_Question_from_Topic Is_This_True_*+ Jeopardy_style
  Topic_Prediction_Answer_Only Topic_Prediction_Question_Only Topic_Prediction_Question_and_Answer_Pair
  automatic_system*+ exercise*+ found_on_google*+
adversarial_qa dbidaf | extractive question answering | t0 | - | 10000
  answer_the_following_q* based_on* generate_question question_context_answer* tell_what_it_is*
adversarial_qa dbert | extractive question answering | t0 | - | 10000
  answer_the_following_q* based_on* generate_question question_context_answer* tell_what_it_is*
adversarial_qa droberta | extractive question answering | t0 | - | 10000
  answer_the_following_q* based_on* generate_question question_context_answer* tell_what_it_is*
duorc SelfRC | extractive question answering | t0 | - | 60721
  answer_question* build_story_around_qa decide_worth_it* extract_answer* generate_question
  generate_question_by_answer movie_director* question_answering* title_generation
duorc ParaphraseRC | extractive question answering | t0 | - | 69524
  answer_question* build_story_around_qa decide_worth_it* extract_answer* generate_question
  generate_question_by_answer movie_director* question_answering* title_generation
ropes | extractive question answering | t0 | - | 10924
  background_new_situation_answer* background_situation_middle* given_background_situation*
  new_situation_background_answer* plain_background_situation* plain_bottom_hint* plain_no_background
  prompt_beginning* prompt_bottom_hint_beginning* prompt_bottom_no_hint prompt_mix* read_background_situation*
squad_v2 | extractive question answering | t0p | - | 130319
  Jeopardy_with_Context Jeopardy_without_Context Questions_with_Context* Questions_with_Context_unanswerable*
  Questions_with_Context_Without_Prompt_Keywords* Questions_with_Context_Without_Prompt_Keywords_unanswerable*
  Topic_Prediction_Context Topic_Prediction_Context_with_randomized_prompt_options
  Topic_Prediction_Context_with_randomized_prompt_options_placed_in_the_end Topic_Prediction_Question_and_Answer_Pair
  Trivia Unanwerable_question+
super_glue record | extractive question answering | t0pp | - | 100730
  Add_sentence_after_continuation_choices_*+ Add_sentence_after_after_continuation_choices_*+ Can_you_figure_out_*+
  GPT_3_style_continuation_choices_*+ GPT_3_style_summary_only_continuation_choices_*+
  GPT_3_style_with_labels_continuation_choices_+ GPT_3_style_with_labels_without_hyphens_continuation_choices_+
  GPT_3_style_without_hyphens_continuation_choices_*+ In_the_question_above_the_placeholder_stands_for*+
  New_highlight_continuation_choices_*+ News_article_continuation_choices_*+ Summary_first_continuation_choices_*+
  What_could_the_placeholder_be_*+ Which_one_is_the_placeholder_*+ choose_between*+ corrupted*+ exercise*+
  pick_one_option*+ the_placeholder_refers_to_*+ trying_to_decide*+
quoref | extractive question answering | t0 | - | 19399
  Answer_Friend_Question* Answer_Question_Given_Context* Answer_Test* Context_Contains_Answer* Find_Answer*
  Found_Context_Online* Given_Context_Answer_Question* Guess_Answer* Guess_Title_For_Context Read_And_Extract_*
  What_Is_The_Answer*
cos_e v1.11 | multiple-choice question answering | t0 | - | 9741
  aligned_with_common_sense description_question_option_id*+ description_question_option_text*+ explain_why_human
  generate_explanation_given_text i_think question_description_option_id*+ question_description_option_text*+
  question_option_description_id*+ question_option_description_text*+ rationale
cosmos_qa | multiple-choice question answering | t0 | - | 25262
  context_answer_to_question context_description_question_answer_id*+ context_description_question_answer_text*+
  context_description_question_text*+ context_question_description_answer_id*+
  context_question_description_answer_text*+ context_question_description_text+
  description_context_question_answer_id*+ description_context_question_answer_text*+
  description_context_question_text*+ no_prompt_id*+ no_prompt_text*+ only_question_answer+
dream | multiple-choice question answering | t0 | - | 6116
  answer_to_dialogue baseline*+ generate_first_utterance generate_last_utterance
  read_the_following_conversation_and_answer_the_question*+
openbookqa main | multiple-choice question answering | t0p | - | 4957
  choices*+ choose_an_answer_with_options*+ only_options*+ pick_answer_with_options*+ pick_using_id*+ which_correct*+
  which_correct_inverse*+
qasc | multiple-choice question answering | t0 | - | 8134
  is_correct_1+ is_correct_2+ qa_with_combined_facts_1+ qa_with_separated_facts_1*+ qa_with_separated_facts_2*+
  qa_with_separated_facts_3*+ qa_with_separated_facts_4*+ qa_with_separated_facts_5*+
quail | multiple-choice question answering | t0 | - | 10246
  context_description_question_answer_id*+ context_description_question_answer_text*+
  context_description_question_text+ context_question_answer_description_id*+
  context_question_answer_description_text*+ context_question_description_answer_id*+
  context_question_description_answer_text*+ context_question_description_text+
  description_context_question_answer_id*+ description_context_question_answer_text*+
  description_context_question_text+ no_prompt_id*+ no_prompt_text*+
quarel | multiple-choice question answering | t0 | - | 1941
  choose_between+ do_not_use+ heres_a_story+ logic_test+ testing_students+
quartz | multiple-choice question answering | t0 | - | 2696
  answer_question_based_on*+ answer_question_below*+ given_the_fact_answer_the_q*+ having_read_above_passage*+
  paragraph_question_plain_concat*+ read_passage_below_choose*+ use_info_from_paragraph_question*+
  use_info_from_question_paragraph*+
race high | multiple-choice question answering | t0p | - | 62445
  Is_this_the_right_answer+ Read_the_article_and_answer_the_question_no_option_*+ Select_the_best_answer*+
  Select_the_best_answer_generate_span_*+ Select_the_best_answer_no_instructions_*+ Taking_a_test*+
  Write_a_multi_choice_question_options_given_ Write_a_multi_choice_question_for_the_following_article
race middle | multiple-choice question answering | t0p | - | 25421
  Is_this_the_right_answer+ Read_the_article_and_answer_the_question_no_option_*+ Select_the_best_answer*+
  Select_the_best_answer_generate_span_*+ Select_the_best_answer_no_instructions_*+ Taking_a_test*+
  Write_a_multi_choice_question_options_given_ Write_a_multi_choice_question_for_the_following_article
sciq | multiple-choice question answering | t0 | - | 11679
  Direct_Question*+ Direct_Question_Closed_Book_*+ Multiple_Choice*+ Multiple_Choice_Closed_Book_+
  Multiple_Choice_Question_First*+
social_i_qa | multiple-choice question answering | t0 | - | 33410
  Check_if_a_random_answer_is_valid_or_not*+ Generate_answer*+ Generate_the_question_from_the_answer I_was_wondering*+
  Show_choices_and_generate_answer*+ Show_choices_and_generate_index*+
super_glue boolq | multiple-choice question answering | t0pp | - | 9427
  GPT_3_Style*+ I_wonder_*+ after_reading*+ based_on_the_following_passage*+ based_on_the_previous_passage*+
  could_you_tell_me_*+ exam*+ exercise*+ valid_binary*+ yes_no_question*+
super_glue copa | sentence completion | t0pp | eval | 400
  C1_or_C2_premise_so_because_*+ best_option*+ cause_effect*+ choose*+ exercise*+ i_am_hesitating*+ more_likely*+
  plausible_alternatives*+ _As_a_result_C1_or_C2_*+ _What_could_happen_next_C1_or_C2_*+ _which_may_be_caused_by*+
  _why_C1_or_C2*+
super_glue multirc | multiple-choice question answering | t0pp | - | 27243
  I_was_going_to_say_*+ Would_it_be_good_to_answer_*+ confirm*+ correct*+ decide_valid*+ found_this_answer*+ grading*+
  is_the_correct_answer_*+ is_a_correct_answer_*+ paragraph_question_is_it_*+
wiki_hop original | multiple-choice question answering | t0 | - | 43738
  choose_best_object_affirmative_1*+ choose_best_object_affirmative_2*+ choose_best_object_affirmative_3*+
  choose_best_object_interrogative_1*+ choose_best_object_interrogative_2*+ explain_relation generate_object
  generate_subject generate_subject_and_object
wiqa | multiple-choice question answering | t0 | - | 29808
  does_the_supposed_perturbation_have_an_effect effect_with_label_answer* effect_with_string_answer*
  what_is_the_final_step_of_the_following_process what_is_the_missing_first_step
  what_might_be_the_first_step_of_the_process what_might_be_the_last_step_of_the_process
  which_of_the_following_is_the_supposed_perturbation
piqa | multiple-choice question answering | t0p | - | 16113
  Correct_the_solution Correct_the_solution_if_false_from_sol_1 Correct_the_solution_if_false_from_sol_2
  Does_this_solution_make_sense_sol1+ Does_this_solution_make_sense_sol2+ choose_the_most_appropriate_solution*+
  finish_sentence_with_correct_choice*+ no_prompt_needed pick_correct_choice_index*+
  pick_correct_choice_with_choice_given_before_goal*+ what_is_the_correct_ending*+
amazon_polarity | sentiment analysis | t0 | - | 3600000
  Is_this_product_review_positive*+ Is_this_review*+ Is_this_review_negative*+ User_recommend_this_product*+
  convey_negative_or_positive_sentiment*+ flattering_or_not*+ negative_or_positive_tone*+ user_satisfied*+
  would_you_buy*+
app_reviews | sentiment analysis | t0 | - | 288065
  categorize_rating_using_review+ convert_to_rating convert_to_star_rating+ generate_review
imdb | sentiment analysis | t0 | - | 25000
  Movie_Expressed_Sentiment*+ Movie_Expressed_Sentiment_2*+ Negation_template_for_positive_and_negative+
  Reviewer_Enjoyment*+ Reviewer_Enjoyment_Yes_No*+ Reviewer_Expressed_Sentiment*+ Reviewer_Opinion_bad_good_choices*+
  Reviewer_Sentiment_Feeling*+ Sentiment_with_choices_*+ Text_Expressed_Sentiment*+ Writer_Expressed_Sentiment*+
rotten_tomatoes | sentiment analysis | t0 | - | 8530
  Movie_Expressed_Sentiment*+ Movie_Expressed_Sentiment_2*+ Reviewer_Enjoyment*+ Reviewer_Enjoyment_Yes_No*+
  Reviewer_Expressed_Sentiment*+ Reviewer_Opinion_bad_good_choices*+ Reviewer_Sentiment_Feeling*+
  Sentiment_with_choices_*+ Text_Expressed_Sentiment*+ Writer_Expressed_Sentiment*+
yelp_review_full | sentiment analysis | t0 | - | 650000
  based_on_that*+ format_rating*+ format_score*+ format_star*+ on_a_scale*+ so_i_would*+ this_place*+
story_cloze 2016 | sentence completion | - | eval | 0
  Answer_Given_options*+ Choose_Story_Ending*+ Generate_Ending+ Movie_What_Happens_Next*+ Novel_Correct_Ending*+
  Story_Continuation_and_Options*+
hellaswag | sentence completion | t0p | eval | 39905
  Appropriate_continuation_Yes_or_No+ Open_ended_completion+ Open_ended_start Predict_ending_with_hint*+
  Randomized_prompts_template*+ Reversed_appropriate_continuation_Yes_or_No+ Topic_of_the_context
  Topic_without_the_ending_answer complete_first_then*+ how_ends+ if_begins_how_continues*+
common_gen | structure to text | t0 | - | 67389
  Example_prompt* Given_concepts_type_2* Given_concepts_type_1* Put_together*
  choice_in_concept_centric_sentence_generation* random_task_template_prompt* sentence_to_concepts topic_to_sentence
  topics_from_the_sentence
wiki_bio | structure to text | t0 | - | 582659
  comprehension guess_person key_content what_content who*
cnn_dailymail 3.0.0 | summarisation | t0 | - | 287113
  2_or_3_sentences* generate_story news_card_view* news_stock* news_summary* spice_up_story sum_in_brief*
  tldr_summary* write_an_outline*
gigaword | summarisation | t0 | - | 3803957
  TLDR* first_sentence_title* generate_summary_for_this* in_a_nutshell* make_a_title* reverse_writing
  write_a_title_for_this_sentence* write_an_article write_its_sentence*
multi_news | summarisation | t0 | - | 44972
  distill* expand_reverse_task_ summarize* summary_scenario* synthesize* what_are_the_key_points*
samsum | summarisation | t0 | - | 14732
  Generate_a_summary_for_this_dialogue* Given_the_above_dialogue_write_a_summary* Sum_up_the_following_dialogue*
  Summarize_this_dialogue_* Summarize_* To_sum_up_this_dialog* Write_a_dialogue_that_match_this_summary
xsum | summarisation | t0 | - | 204045
  DOC_boils_down_to_simple_idea_that* DOC_given_above_write_one_sentence* DOC_how_would_you_rephrase_few_words*
  DOC_tldr* DOC_write_summary_of_above* article_DOC_summary* college_roommate_asked_DOC_so_I_recap*
  read_below_DOC_write_abstract* summarize_DOC* summarize_this_DOC_summary*
ag_news | topic classification | t0 | - | 120000
  classify*+ classify_question_first*+ classify_with_choices*+ classify_with_choices_question_first*+ recommend*+
  which_section*+ which_section_choices*+
dbpedia_14 | topic classification | t0 | - | 560000
  given_a_choice_of_categories_*+ given_a_list_of_category_what_does_the_title_belong_to*+
  given_list_what_category_does_the_paragraph_belong_to*+ pick_one_category_for_the_following_text*+
trec | topic classification | t0 | - | 5452
  fine_grained_ABBR+ fine_grained_ABBR_context_first+ fine_grained_DESC+ fine_grained_DESC_context_first+
  fine_grained_ENTY+ fine_grained_HUM+ fine_grained_HUM_context_first+ fine_grained_LOC+
  fine_grained_LOC_context_first+ fine_grained_NUM+ fine_grained_NUM_context_first+ fine_grained_open*+
  fine_grained_open_context_first*+ pick_the_best_descriptor*+ trec1*+ trec2*+ what_category_best_describe*+
  which_category_best_describes*+
super_glue wic | word sense disambiguation | t0pp | eval | 5428
  GPT_3_prompt*+ GPT_3_prompt_with_label*+ affirmation_true_or_false*+ grammar_homework*+ polysemous*+
  question_context*+ question_context_meaning*+ question_context_meaning_with_label*+ same_sense*+ similar_sense*+
"""
# Where two registries hold one data set under two names: the family of both.
_FAMILIES = {
    "yelp_review_full": "yelp",
    "squad_v2": "squad",
    "kilt_tasks hotpotqa": "hotpot_qa",
    "super_glue wsc.fixed": "wsc",
    "super_glue axg": "winogender",
}
ROUNDS = ("r1", "r2", "r3")  # of ANLI, each a data set of its own


class Template(NamedTuple):
    """A template of a data set: P3's name of the task, and its marks."""

    task: str
    original: bool
    options: bool


class PromptedSet(NamedTuple):
    """A data set of P3, as the table says."""

    dataset: str
    type: str
    trained: str
    tested: str
    size: int
    family: str
    templates: tuple[Template, ...]


def _cleaned(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text)


def _parse(table: str) -> tuple[PromptedSet, ...]:
    found: list[PromptedSet] = []
    for line in table.strip().splitlines():
        if not line.startswith(" "):
            dataset, kind, trained, tested, size = line.split(" | ")
            name, _, subset = dataset.partition(" ")
            family = _FAMILIES.get(dataset, subset if name in ("glue", "super_glue") else name)
            found.append(PromptedSet(dataset, kind, trained, tested, int(size), family, ()))
            continue
        last = found[-1]
        made = []
        for marked in line.split():
            name = marked.rstrip("*+")
            for end in [f"_{n}" for n in ROUNDS] if last.dataset == "anli" else [""]:
                task = _cleaned(f"{last.dataset} {name}".replace(" ", "_")) + end
                made.append(Template(task, "*" in marked, "+" in marked))
        found[-1] = last._replace(templates=(*last.templates, *made))
    return tuple(found)


SETS = _parse(_TABLE)
